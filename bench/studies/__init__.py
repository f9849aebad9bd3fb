"""Studies: each compares one part of the project with what else there is, as `python -m bench.studies.NAME`.

sharding       `shard` beside tar, webdataset's ShardWriter and a bare loop
data_path      the training pipeline beside libjpeg-turbo and torch's DataLoader
quality        what the JPEG quality of images stored at 256 costs, and what it changes
step           the normalization and the training step beside plain PyTorch
parallel       the three ways of sharing the model over two processes
checkpoint     what writing a checkpoint and agreeing on a stop cost a step
loader         what the loader costs between epochs, and in Python
public_loader  what `pipeline.ImageLoader` costs beside the training pipeline
scale          what 14 million samples cost a process at its start and an epoch
busy           how OpenMP's threads wait, alone and beside other programs
memory         the data path's memory over epochs with oversized images
"""

"""Studies: each compares one part of the project with what else there is, as `python -m bench.studies.NAME`.

sharding     `shard` beside tar, webdataset's ShardWriter and a bare loop
data_path    the training pipeline beside libjpeg-turbo and torch's DataLoader
step         the normalization and the training step beside plain PyTorch
parallel     the three ways of sharing the model over two processes
checkpoint   what writing a checkpoint and agreeing on a stop cost a step
loader       what the loader costs at the start, between epochs, and in Python
busy         how OpenMP's threads wait, alone and beside other programs
memory       the data path's memory over epochs with oversized images
"""

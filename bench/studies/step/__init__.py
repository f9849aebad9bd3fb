"""Speed of the normalization beside torch's, and of a training step beside what the machine's matrix products allow.

The normalization, forward and backward, on the shapes of the paper's two layers in both memory formats:

    torch       F.local_response_norm
    TorchScript ours as it is by default
    compiled    ours under torch.compile

A training step of the full model on a resident batch:

    plain       eager PyTorch as one writes it: F.local_response_norm, torch.optim.SGD, contiguous memory, plain glibc
    reusing     the same, with freed memory kept as `trainer.launch` has it
    ours        as `train` runs it
    no LRN      the same without normalization: the ratio of the two is the normalization's cost
    compiled    `train --compile`
    bf16        `train --precision bf16`, also with --compile
    CUDA graphs `train --cuda-graphs`, on a GPU

Contestants are interleaved: in a round each runs once, and each round begins with another one; a ratio is of one round.
Each step runs in a process of its own, because memory is kept by process, and measures the speed of the matrix products
too.
"""

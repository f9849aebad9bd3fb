"""Speed of the normalization beside torch's, and of a training step beside what the machine's matrix products allow.

The normalization, forward and backward, on the shapes of the paper's two layers in both memory formats:

    torch       F.local_response_norm
    TorchScript ours as it is by default
    compiled    ours under torch.compile

A training step of the full model on a resident batch:

    plain       eager PyTorch as one writes it: F.local_response_norm, torch.optim.SGD, contiguous memory, plain glibc
    reusing     the same, with freed memory kept as `trainer.launch` has it
    ours        eager, `train --no-compile --no-cuda-graphs`: train's default on a CPU
    grouped     ours with the towers in one tensor, convolved in groups, which a CPU runs; measured on a GPU
    side by side
                ours with each tower in a tensor of its own, which a GPU runs; measured on a CPU
    no LRN      ours without normalization: the ratio of the two is the normalization's cost
    compiled    `train --compile --no-cuda-graphs`
    bf16        `train --precision bf16`, eager, also compiled
    CUDA graphs `train --no-compile --cuda-graphs`, on a GPU
    compiled, CUDA graphs
                train's default on one GPU

Contestants are interleaved: in a round each runs once, and each round begins with another one; a ratio is of one round.
Each step runs in a process of its own, because memory is kept by process, and measures the speed of the matrix products
too.
"""

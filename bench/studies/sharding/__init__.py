"""Speed and memory of `shard` beside what it can be compared with, in one run.

    keep             original bytes kept: our command, GNU tar and webdataset's ShardWriter
    size256          --size 256: our command, and a bare loop that decodes, scales and encodes and writes nothing
    libraries        microseconds an image of each library's decoding, scaling and encoding
    scaled_decoding  decoding at reduced size: what it costs in PSNR and how much time it saves
    memory           peak memory of converting N and 10 N images

Contestants are interleaved: in a round each runs once, and each round begins with another one. A ratio compares speeds
of the same round, ours over theirs, so above 1 we are faster.
"""

"""`throughput-bench --peers`: other loaders beside ours, on the same images, transform, batch and cores.

    base        what a loader to compare with has to give, and the images that all of them read
    transform   the images' transform, as people write it with Pillow and OpenCV
    __main__    the comparison by itself: python -m bench.loaders
    registry    all loaders, in the order of the table
    compare     interleaves their measurements and checks that they do the same work
    ours, with_*    one file a loader: it reads the format and is set up as its documentation recommends

To add a loader: write its file, add it to the registry and its package to pyproject.toml's `peers`.
"""

# For a machine with NVIDIA GPUs and its container toolkit. It has been written without one, and not been built yet.
#   docker build -t alexnet-dali .
#   docker run --gpus all --shm-size 8g -v /data:/data alexnet-dali train --data /data/shards --out /data/runs/paper
FROM python:3.12-slim
# Triton, which torch.compile uses on a GPU, calls a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /alexnet-dali
COPY . .
RUN pip install --no-cache-dir '.[remote]'
ENTRYPOINT ["alexnet-dali"]

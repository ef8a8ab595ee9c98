# Training, calibrating and exporting, with CUDA from torch's own packages. From the checkout's root:
#   docker build -f docker/train.Dockerfile -t exitwise-train .
#   docker run --gpus all --shm-size 2g -v "$PWD/photos:/data:ro" -v "$PWD/runs:/runs" exitwise-train \
#       train --data /data --model timm/resnet18 --exits 3 --out /runs/photos
FROM python:3.13-slim
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt '.[train,text,hf]' \
    && useradd --uid 10001 --create-home exitwise
USER 10001
WORKDIR /home/exitwise
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["exitwise"]
CMD ["--help"]

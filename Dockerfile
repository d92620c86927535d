# One image for web, worker and inference; docker-compose.yml says which role a container plays.
FROM node:22-slim AS assets

WORKDIR /studio
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY static static
RUN node static/build.mjs

FROM python:3.11-slim

RUN useradd --create-home --uid 1000 studio && mkdir /data && chown studio /data
WORKDIR /studio
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
COPY --from=assets /studio/static/dist static/dist

USER studio
ENV STUDIO_PYTHON=python3 \
    STUDIO_DATA_DIR=/data \
    PYTHONUNBUFFERED=1
VOLUME /data
ENTRYPOINT ["./studio"]
CMD ["web", "--host", "0.0.0.0"]

FROM python:3.13-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir "/src[label,batch]" && rm -rf /src
RUN useradd --create-home user && mkdir /data && chown user /data
USER user
WORKDIR /data
ENV HF_HOME=/data/.cache SP_RERANK_OUT=/data/runs
ENTRYPOINT ["sp-rerank"]
CMD ["--help"]

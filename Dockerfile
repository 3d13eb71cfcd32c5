FROM python:3.13-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir "/src[label,batch]" && rm -rf /src
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENV HF_HOME=/work/.cache SP_RERANK_OUT=/work/runs
ENTRYPOINT ["sp-rerank"]
CMD ["--help"]

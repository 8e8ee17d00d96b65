#!/bin/sh
# llama3.1-405b at bf16 with vllm, planned for 2x8xa100-80g
# 8192 tokens for each of 1 request at once
# Wants vllm 0.32.0 on PATH of each machine, and the weights or a network there:
#   NODE_RANK     its number: 0 on node0, 1 on node1
#   MASTER_ADDR   an address of machine 0 by which the others reach it
#   OWN_ADDR      an address of this machine by which the others reach it
#   VLLM_API_KEY  a key, on machine 0; in the environment, so that nobody reads it in a list of processes
# The endpoint is http://127.0.0.1:8080/v1 of machine 0. What the machines say to each other is not
# encrypted, and who reaches their ports can take them over: a private network alone.
set -eu
: "${NODE_RANK:?the number of this machine}" "${MASTER_ADDR:?the address of machine 0}" "${OWN_ADDR:?the address of this machine}"
[ "$NODE_RANK" != 0 ] || : "${VLLM_API_KEY:?a key for clients of the endpoint}"
case "$NODE_RANK" in
0)
  exec env VLLM_HOST_IP="$OWN_ADDR" VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_ENGINE_READY_TIMEOUT_S=86400 NO_COLOR=1 CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 vllm serve meta-llama/Llama-3.1-405B-Instruct --host 127.0.0.1 --port 8080 --served-model-name llama3.1-405b --load-format safetensors --max-model-len 8192 --max-num-seqs 1 --max-num-batched-tokens 2048 --dtype bfloat16 --kv-cache-dtype auto --tensor-parallel-size 8 --pipeline-parallel-size 2 --cpu-offload-gb 0 --no-enforce-eager --gpu-memory-utilization 0.920 --distributed-executor-backend mp --nnodes 2 --node-rank 0 --master-port 29501 --master-addr "$MASTER_ADDR"
  ;;
1)
  exec env VLLM_HOST_IP="$OWN_ADDR" VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_ENGINE_READY_TIMEOUT_S=86400 NO_COLOR=1 CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 vllm serve meta-llama/Llama-3.1-405B-Instruct --host 127.0.0.1 --port 8080 --served-model-name llama3.1-405b --load-format safetensors --max-model-len 8192 --max-num-seqs 1 --max-num-batched-tokens 2048 --dtype bfloat16 --kv-cache-dtype auto --tensor-parallel-size 8 --pipeline-parallel-size 2 --cpu-offload-gb 0 --no-enforce-eager --gpu-memory-utilization 0.920 --distributed-executor-backend mp --nnodes 2 --node-rank 1 --master-port 29501 --headless --master-addr "$MASTER_ADDR"
  ;;
*) echo "there is no machine number $NODE_RANK" >&2; exit 2 ;;
esac

#!/bin/sh
# Does a call reach its device, and the answer its caller? One device polls over HTTP and answers, the other calls it.
set -eu
wait_ms=${WAIT_MS:-20000}

# As the device with this token: request TOKEN PATH [CURL'S OPTIONS]. A certificate is for the names that devices know,
# not for the cluster's.
request() {
    token=$1 path=$2
    shift 2
    curl --silent --show-error --max-time 60 --insecure "$@" "$URL/api/v1/$token/$path"
}

answer_one_call() {
    call=$(request "$TARGET_TOKEN" "rpc?timeout=$wait_ms" --fail)
    echo "the target was called: $call"
    number=$(echo "$call" | sed -n 's/^{"id":\([0-9]*\),.*/\1/p')
    request "$TARGET_TOKEN" "rpc/$number" --data '{"status":"ok"}'
}

answer_one_call &
call='{"method":"sendMsg","params":{"deviceId":"'$TARGET_ID'","timeout":'$wait_ms',"connectTimeout":'$wait_ms',"body":{"x":1}}}'
answer=$(request "$CALLER_TOKEN" rpc --data "$call")
echo "the caller read: $answer"
wait $!
[ "$answer" = '{"status":"ok"}' ]

#!/bin/sh
# Test Device A2 polls for calls, prints each and answers {"status":"ok"}, until it is ended.
url=http://${HTTP_HOST:-localhost}:${HTTP_PORT:-8080}/api/v1/${TOKEN:-A2_TEST_TOKEN}/rpc
while :; do
    # Nothing comes when a poll's time is over: then it polls again.
    call=$(curl -sS "$url") || sleep 1
    number=$(echo "$call" | sed -n 's/^{"id":\([0-9]*\),.*/\1/p')
    if [ -n "$number" ]; then
        echo "$call"
        curl -sS -d '{"status":"ok"}' "$url/$number"
    fi
done

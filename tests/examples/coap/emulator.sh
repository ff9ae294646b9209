#!/bin/sh
# Test Device A2 waits for calls, prints each and answers {"status":"ok"}, until it is ended.
url=coap://${COAP_HOST:-127.0.0.1}:${COAP_PORT:-5683}/api/v1/${TOKEN:-A2_TEST_TOKEN}/rpc
folder=$(mktemp -d)
mkfifo "$folder/calls"
# Observes for an hour; its end ends the observation.
coap-client-notls -w -s 3600 -m get "$url" >"$folder/calls" &
client=$!
trap 'kill $client; rm -r "$folder"; exit' INT TERM
while read -r call; do
    echo "$call"
    number=$(echo "$call" | sed -n 's/^{"id":\([0-9]*\),.*/\1/p')
    if [ -n "$number" ]; then
        coap-client-notls -m post -e '{"status":"ok"}' "$url/$number"
    fi
done <"$folder/calls"
rm -r "$folder"

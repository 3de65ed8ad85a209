"""What keyhole-client does, as one would write it in Python: asks for ports, checks the answer, confirms, prints.

usage: KEYHOLE_TOKEN=HEX python3 client.py HOST:PORT JOB PORTS NODE
"""

import hashlib
import hmac
import os
import sys
import urllib.request

server, job, ports, node = sys.argv[1:5]
token = bytes.fromhex(os.environ["KEYHOLE_TOKEN"])
nonce = os.urandom(16).hex()


def signature(purpose, body):
    return hmac.new(token, f"keyhole-{purpose}\n".encode() + body, hashlib.sha256).hexdigest()


def post(path, purpose, text):
    body = text.encode()
    headers = {"Content-Type": "text/plain", "Keyhole-Signature": signature(purpose, body)}
    request = urllib.request.Request(f"http://{server}{path}", data=body, headers=headers)
    return urllib.request.urlopen(request, timeout=60)


with post("/v1/ports", "request", f"keyhole 1\njob {job}\nrun 0\nnonce {nonce}\nports {ports}\nnode {node}\n") as answer:
    grant = answer.read()
    if not hmac.compare_digest(answer.headers["Keyhole-Signature"], signature("grant", grant)):
        sys.exit("the answer is not signed by keyhole")
lines = grant.decode().splitlines()
if lines[:2] != ["keyhole 1", f"nonce {nonce}"]:
    sys.exit("this answers another request")
post("/v1/ports/confirm", "confirm", f"keyhole 1\njob {job}\nrun 0\nnonce {nonce}\n").close()
granted = [line.split()[1:] for line in lines[2:]]
for number, (internal, gateway, external) in enumerate(granted):
    print(f"export KEYHOLE_PORT{number}={internal}")
    print(f"export KEYHOLE_GATEWAY{number}={gateway}")
    print(f"export KEYHOLE_EXTERNAL_PORT{number}={external}")
print(f"export KEYHOLE_NUM_PORTS={len(granted)}")

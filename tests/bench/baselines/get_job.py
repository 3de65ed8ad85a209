"""A job as JSON over plain HTTP, from etcd over gRPC: what an ordinary service does for GET /jobs/<id>. For gunicorn."""

import etcd3
from flask import Flask, Response, abort

app = Flask(__name__)
store = etcd3.client(host="127.0.0.1", port=2379)


@app.get("/jobs/<int:job>")
def show(job):
    value, _ = store.get(f"/bwvisu-runner/clusters/default/jobs/{job}")
    if value is None:
        abort(404)
    return Response(value, mimetype="application/json")

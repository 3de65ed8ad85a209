//! Templates of the proofs.

/// A web server that listens some seconds after its job began, which is some seconds after its submission: long enough for each state to be seen.
pub const SLOW_SERVICE: (&str, &str) = (
    "slow_service.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1 --begin=now+6
#KEYHOLE-REQUEST-PORTS 1
sleep 6
cd \"$(mktemp -d)\"
echo 'bytes of the application of job {{bwvisu_job_id}}' >bytes
exec python3 -m http.server \"$KEYHOLE_PORT0\"
",
);

/// A web server at once.
pub const SERVICE: (&str, &str) = (
    "service.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1
#KEYHOLE-REQUEST-PORTS 1
cd \"$(mktemp -d)\"
echo 'bytes of the application of job {{bwvisu_job_id}}' >bytes
exec python3 -m http.server \"$KEYHOLE_PORT0\"
",
);

/// A job that sleeps and has no ports.
pub const PORTLESS: (&str, &str) = (
    "portless.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1
exec sleep {{seconds}}
",
);

/// A job that ends with the code that it is told.
pub const EXITING: (&str, &str) = (
    "exiting.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1
exit {{code}}
",
);

/// Three nodes and five ports: says which, binds all of them on every node, then serves each of them from the first.
pub const WIDE: (&str, &str) = (
    "wide.txt",
    r#"#!/bin/bash
#SBATCH --time=10 --nodes=3 --ntasks-per-node=1 --nodelist=c[0-2]
#KEYHOLE-REQUEST-PORTS 5
set -eu
env | grep '^KEYHOLE_' | sort
srun python3 -c '
import os, socket
for i in range(5):
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", int(os.environ["KEYHOLE_PORT%d" % i])))
    held.listen()
    print(socket.gethostname(), "could listen on port", i)
'
exec python3 -c '
import os, socket, threading
def serve(i):
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("", int(os.environ["KEYHOLE_PORT%d" % i])))
    door.listen(64)
    while True:
        guest, _ = door.accept()
        try:
            guest.sendall(b"bytes of port %d" % i)
            guest.close()
        except OSError:
            pass # it only knocked
for i in range(5):
    threading.Thread(target=serve, args=(i,)).start()
'
"#,
);

/// A web server in a job that waits until somebody releases it.
pub const HELD: (&str, &str) = (
    "held.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1 --hold
#KEYHOLE-REQUEST-PORTS 1
cd \"$(mktemp -d)\"
echo 'bytes of the application of job {{bwvisu_job_id}}' >bytes
exec python3 -m http.server \"$KEYHOLE_PORT0\"
",
);

/// Prints everything that it has been left with after the ports line, then serves.
pub const TELLTALE: (&str, &str) = (
    "telltale.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1
#KEYHOLE-REQUEST-PORTS 1
env
set
declare -p
declare -f
export
trap -p
compgen -v | while read -r name; do echo \"$name=${!name}\"; done
echo 'that is all'
cd \"$(mktemp -d)\"
exec python3 -m http.server \"$KEYHOLE_PORT0\"
",
);

/// Three ports on one node: each says to whoever connects whose it is, and which.
pub const SEVERAL: (&str, &str) = (
    "several.txt",
    r#"#!/bin/bash
#SBATCH --time=10 --nodes=1
#KEYHOLE-REQUEST-PORTS 3
exec python3 -c '
import os, socket, threading
def serve(i):
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("", int(os.environ["KEYHOLE_PORT%d" % i])))
    door.listen(64)
    while True:
        guest, _ = door.accept()
        try:
            guest.sendall(b"port %d of job {{bwvisu_job_id}}" % i)
            guest.close()
        except OSError:
            pass # it only knocked
for i in range(3):
    threading.Thread(target=serve, args=(i,)).start()
'
"#,
);

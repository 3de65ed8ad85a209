//! Templates of the proofs.

/// A web server that listens some seconds after its job began, which is some seconds after its submission.
pub const SLOW_SERVICE: (&str, &str) = (
    "slow_service.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1 --begin=now+2
#KEYHOLE-REQUEST-PORTS 1
sleep 2
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

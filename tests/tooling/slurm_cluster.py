"""A Slurm cluster of one node on this machine, for tests: `with Cluster(folder) as c:` gives c.env; as a script, `slurm_cluster.py FOLDER` keeps one until Ctrl-C."""
import os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

CONF = """ClusterName=trm
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort={port}
SlurmdPort={port_d}
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
MinJobAge=3600
CommunicationParameters=NoAddrCache
InactiveLimit=0
KillWait=60
Waittime=0
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""

def missing():
    "Why no cluster can be started here; empty where one can."
    absent = [p for p in ('slurmctld', 'slurmd', 'sbatch', 'munged') if not shutil.which(p, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')]
    if absent: return f'not installed: {", ".join(absent)} (tests/tooling/system_packages.sh)'
    return '' if os.geteuid() == 0 else 'a Slurm cluster of one node is started as root'

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def pid_of(file):
    try: return int(Path(file).read_text())
    except (OSError, ValueError): return None

def alive(pid):
    try: os.kill(pid, 0)
    except (OSError, TypeError): return False
    return True

class Cluster:
    "Starts munged, slurmctld and slurmd, and ends those that it has started."
    def __init__(self, folder, cpus=2):
        self.folder, self.conf, self.pids = Path(folder), Path(folder)/'slurm.conf', []
        for name in ('state', 'spool'): (self.folder/name).mkdir(parents=True, exist_ok=True)
        self.conf.write_text(CONF.format(port=free_port(), port_d=free_port(), state=self.folder, cpus=min(cpus, os.cpu_count() or 1)))
        self.env = os.environ | dict(SLURM_CONF=str(self.conf), PATH=os.environ['PATH'] + ':/usr/sbin:/sbin')

    def run(self, *command): return subprocess.run(command, env=self.env, capture_output=True, text=True)

    def munge(self):
        "Authentication; left alone where it runs already."
        if self.run('sh', '-c', 'munge -n | unmunge').returncode == 0: return
        Path('/run/munge').mkdir(exist_ok=True)
        self.run('chown', 'munge:munge', '/run/munge')
        self.run('runuser', '-u', 'munge', '--', 'munged', '--force')
        self.pids.append(pid_of('/run/munge/munged.pid'))

    def __enter__(self):
        self.munge()
        self.run('slurmctld', '-f', str(self.conf), '-c')
        self.run('slurmd', '-N', 'localhost', '-f', str(self.conf))
        until = time.time() + 60
        while 'idle' not in self.run('sinfo', '-h', '-o', '%T').stdout:
            if time.time() > until: raise RuntimeError('the cluster does not start: ' + self.run('sinfo').stderr + (self.folder/'slurmctld.log').read_text()[-2000:])
            time.sleep(.2)
        return self

    def __exit__(self, *_):
        self.run('scancel', '--user', 'root')
        until = time.time() + 30
        while self.run('squeue', '-h').stdout.strip() and time.time() < until: time.sleep(.2)
        self.pids = [pid_of(self.folder/'slurmd.pid'), pid_of(self.folder/'slurmctld.pid'), *self.pids]
        for pid in filter(alive, self.pids): os.kill(pid, signal.SIGTERM)

if __name__ == '__main__':
    if missing(): sys.exit(missing())
    with Cluster(Path(sys.argv[1]).absolute()) as cluster:
        print(f'export SLURM_CONF={cluster.conf}', flush=True)
        try: signal.pause()
        except KeyboardInterrupt: pass

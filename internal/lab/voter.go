package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/config"
)

// What a voter remembers, in its folder.
const (
	witnessData = "witness.db"
	etcdData    = "etcd"
)

// A Voter is the arbiter's daemon, on a host of its own. What it grants is written down with the time at which it was decided.
type Voter struct {
	lab  *Lab
	proc *process // nil while it doesn't run
}

// Start starts it with what it remembers. It does nothing if it runs.
func (v *Voter) Start(ctx context.Context) (err error) {
	if v.proc != nil {
		return nil
	}
	l := v.lab
	if l.opts.Arbiter == config.ArbiterEtcd {
		return v.startEtcd(ctx)
	}
	log, err := os.OpenFile(l.path(witnessName, "colod.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	copied, err := os.OpenFile(log.Name(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return errors.Join(err, r.Close(), w.Close())
	}
	l.wg.Go(func() {
		defer r.Close()
		defer copied.Close()
		l.Grants.follow(io.TeeReader(r, copied))
	})
	v.proc, err = program{
		name: "the witness", host: l.Topology.Witness, dir: l.path(witnessName), log: w,
		argv: []string{l.opts.Assets.Daemon, "witness", "--config", l.path(witnessName, "witness.yaml")},
	}.start(ctx, l.note)
	return errors.Join(err, w.Close())
}

// Kill ends it without a word. What it has on disk stays.
func (v *Voter) Kill() error {
	if v.proc == nil {
		return nil
	}
	err := v.proc.kill()
	v.proc = nil
	return err
}

// Forget ends it, and takes away what it has on disk.
func (v *Voter) Forget() error {
	if err := v.Kill(); err != nil {
		return err
	}
	if v.lab.opts.Arbiter == config.ArbiterEtcd {
		return os.RemoveAll(v.lab.path(witnessName, etcdData))
	}
	return os.Remove(v.lab.path(witnessName, witnessData))
}

// Signal sends it a signal that doesn't end it.
func (v *Voter) Signal(s syscall.Signal) error {
	if v.proc == nil {
		return errors.New("the arbiter doesn't run")
	}
	return v.proc.signal(s)
}

// follow reads a witness's log, which has every record that it has made or held against a claim.
func (g *Grants) follow(log io.Reader) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Time   time.Time       `json:"time"`
			Msg    string          `json:"msg"`
			Record *arbiter.Record `json:"record"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Record != nil && line.Record.Generation > 0 {
			g.Add(line.Time, *line.Record)
		}
	}
}

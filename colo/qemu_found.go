package colo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

func (l *qemuLauncher) End(ctx context.Context, s *Spec, i state.Instance) error {
	boot, err := bootID()
	if err != nil || i.BootID != boot {
		return err
	}
	p, err := findProcess(i.PID, i.StartTicks, l.logFile(s.Name))
	if p == nil {
		return err
	}
	defer l.forget(context.WithoutCancel(ctx), s.Name)
	return p.kill(ctx)
}

// endOrphan ends a QEMU of the VM that was launched right before a crash and that nobody remembers: it has never run.
func (l *qemuLauncher) endOrphan(ctx context.Context, vm string) error {
	p, err := l.orphan(vm)
	if p == nil {
		return err
	}
	l.cfg.Log.Warn("ending a QEMU that was launched before a crash and never ran", "vm", vm, "pid", p.pid)
	defer l.forget(context.WithoutCancel(ctx), vm)
	return p.kill(ctx)
}

// orphan finds the QEMU whose number lies in a VM's folder; nil if none runs.
func (l *qemuLauncher) orphan(vm string) (*process, error) {
	text, err := os.ReadFile(filepath.Join(l.dir(vm), pidFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // none
	}
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // QEMU was ended while it wrote it
	}
	ticks, _, err := procStat(pid)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // no such process
	}
	p, err := findProcess(pid, ticks, l.logFile(vm))
	if p == nil {
		return nil, err
	}
	// The number may be another process's by now: ours has its sockets on its command line.
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(argv, []byte(filepath.Join(l.dir(vm), qmpSocket))) {
		return nil, nil //nolint:nilerr,nilnil // it has ended
	}
	return p, nil
}

// strangers looks for such QEMUs.
func (l *qemuLauncher) strangers(known []state.VM) error {
	files, err := filepath.Glob(filepath.Join(l.cfg.RunDir, "*", pidFile))
	if err != nil {
		return err
	}
	for _, f := range files {
		vm := filepath.Base(filepath.Dir(f))
		if slices.ContainsFunc(known, func(r state.VM) bool { return r.Name == vm }) {
			continue
		}
		p, err := l.orphan(vm)
		if err != nil {
			return err
		}
		if p != nil {
			return fmt.Errorf("%w: process %d, of a VM %s: put the right state file back, or, if the other node is to go on, end that process first: kill -9 %d", ErrUnknownQEMU, p.pid, vm, p.pid)
		}
	}
	return nil
}

func (l *qemuLauncher) newCopy(s *Spec, p *process) *qemuCopy {
	disks, nics := l.parts(s)
	c := &qemuCopy{l: l, spec: s, disks: disks, nics: nics, proc: p, dir: l.dir(s.Name), events: make(chan CopyEvent, 64), quit: make(chan struct{}), killed: make(chan struct{}), heed: make(chan func()),
		log: l.cfg.Log.With("node", l.cfg.Name, "vm", s.Name, "pid", p.pid)}
	c.setProtection(s.Protection)
	return c
}

func (l *qemuLauncher) Attach(ctx context.Context, s *Spec, i state.Instance) (Copy, View, error) {
	boot, err := bootID()
	if err != nil {
		return nil, View{}, err
	}
	var p *process
	if i.BootID == boot { // else the host was restarted
		p, err = findProcess(i.PID, i.StartTicks, l.logFile(s.Name))
	}
	if p == nil {
		l.dropScratch(s.Name)
		return nil, View{}, err
	}
	c := l.newCopy(s, p)
	if err := c.connect(ctx); err != nil {
		return nil, View{}, err
	}
	v, err := c.view(ctx)
	if err != nil {
		c.Disconnect()
		return nil, View{}, err
	}
	for _, n := range c.nics {
		joined, err := l.host.Joined(ctx, n)
		if err != nil {
			c.Disconnect()
			return nil, View{}, err
		}
		v.Cut = v.Cut || !joined
	}
	if v.Mode != "none" {
		c.inColo.Store(true)
	}
	if v.Mode == "primary" {
		c.adoptComparer()
		v.PeerBad = c.missed(ctx)
		c.torn.Store(v.PeerBad != "")
	}
	if v.Gone, err = blockrepl.LocalGone(ctx, c.main, c.disks); err != nil {
		c.Disconnect()
		return nil, View{}, err
	}
	if err := c.removeKey(); err != nil { // of an attach that was interrupted; it begins anew
		c.log.Warn("the replication's key was not removed", "err", err)
	}
	if err := blockrepl.EndBackup(ctx, c.main, c.disks); err != nil { // of a daemon that was killed meanwhile
		c.log.Warn("a backup that was interrupted is still there", "err", err)
	}
	l.dropScratch(s.Name)
	c.halves.lose(v.Gone...)
	c.second.Store(v.Mode == "secondary" || v.Incoming)
	c.off.Store(v.Off)
	return c, v, nil
}

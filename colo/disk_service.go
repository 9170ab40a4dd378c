package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/state"
)

// This file is about halves of disks that are out of service, because they fail or because a person says so.

// ErrDiskOffline is returned for what needs a half of a disk that is out of service.
var ErrDiskOffline = errors.New("a half of a disk is out of service")

// offline names the disks whose half on this node is out of service.
func offline(rec state.VM) []string {
	var names []string
	for name, d := range rec.Disks {
		if d.Offline != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (m *machine) offlineError(rec state.VM) error {
	var why []string
	for _, name := range offline(rec) {
		why = append(why, name+" ("+rec.Disks[name].Offline+")")
	}
	return fmt.Errorf("%w on %s: %s; when it is well again: coloctl disk online %s %s %s", ErrDiskOffline, m.n.cfg.Name, strings.Join(why, ", "),
		m.name, offline(rec)[0], m.n.cfg.Name)
}

// setOffline takes this node's half of a disk out of service. stale says that it lacks writes from now on.
func setOffline(disk, why string, stale bool) func(*state.VM) {
	return func(v *state.VM) {
		if v.Disks == nil {
			v.Disks = map[string]state.Disk{}
		}
		d := v.Disks[disk]
		d.Offline = why
		if stale {
			d.InSync = false
		}
		v.Disks[disk] = d
	}
}

// noteDisk remembers and tells that a disk fails. What was taken out of a running copy is stale from then on: it must not be started from.
func (m *machine) noteDisk(msg message) {
	if msg.disk != "" {
		m.update(setOffline(msg.disk, msg.text, true))
	}
	m.emit(Event{Kind: "disk", State: m.State(), Text: msg.text, Fields: map[string]any{"disk": msg.disk}})
}

// SetDisk takes this node's half of a disk out of service, or back into it. The guest goes on: a primary's through the peer's half, and then on the
// peer by a switchover, unless the VM's owner wants it to stay; a secondary ends, and the primary goes on alone. What is taken back is made
// equal when the VM is protected next.
func (n *Node) SetDisk(ctx context.Context, vm, disk string, online bool, reason string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	rec, spec := m.info()
	if !slices.ContainsFunc(spec.Disks, func(d DiskSpec) bool { return d.Name == disk }) {
		return fmt.Errorf("%s has no disk %q", vm, disk)
	}
	if online {
		switch s := m.State(); s {
		case Protected, SwitchingOver, Detaching, Arbitrating:
			if rec.Disks[disk].Offline != "" {
				return fmt.Errorf("the copy that runs on %s has let go of it: switch %s over first: %w", n.cfg.Name, vm, &UnexpectedEventError{VM: vm, State: s, Event: "disk-online"})
			}
		}
		if err := m.updateNow(ctx, setOffline(disk, "", false)); err != nil {
			return err
		}
		m.emit(Event{Kind: "disk", State: m.State(), Text: "this node's half of disk " + disk + " is back in service", Fields: map[string]any{"disk": disk}})
		m.reset()
		return nil
	}
	if reason == "" {
		reason = "taken out of service by a person"
	}
	switch s := m.State(); s {
	case Protected:
		if err := m.current().DropDisk(ctx, disk); err != nil {
			return err
		}
		m.post(message{kind: DiskFailed, disk: disk, text: reason, copy: m.current()})
		return nil
	case Secondary:
		// It has all that was written until it ends, and the primary keeps record of what comes then.
		if err := m.updateNow(ctx, setOffline(disk, reason, false)); err != nil {
			return err
		}
		m.post(message{kind: DiskFailed, text: "disk " + disk + ": " + reason, copy: m.current()})
		return nil
	case Stopped, Outdated, Failed:
		if aloneIn(rec, n.cfg.Name) && len(incomplete(rec, spec)) == 0 {
			return fmt.Errorf("%s holds the only current half of disk %s: %w", n.cfg.Name, disk, &UnexpectedEventError{VM: vm, State: s, Event: "disk-offline"})
		}
		return m.updateNow(ctx, setOffline(disk, reason, false))
	default:
		return fmt.Errorf("%s holds the only current half of disk %s, or is changing that: %w", n.cfg.Name, disk, &UnexpectedEventError{VM: vm, State: s, Event: "disk-offline"})
	}
}

package colo

import (
	"context"
	"fmt"
	"time"
)

// evPing asks a state machine's loop for a sign of life. It is not in the table: it never reaches it.
const evPing EventKind = "ping"

// loopLimit is how long the loop over all leases may take before the node counts as stuck.
const loopLimit = 10 * time.Second

// Alive returns nil when the node's engine works: every VM's state machine takes an event before ctx ends, and the leases are looked after. It is what a watchdog
// should be fed by. A machine that is still finding out what became of its QEMU doesn't count, for the first minute.
func (n *Node) Alive(ctx context.Context) error {
	if err := context.Cause(n.ctx); err != nil {
		return err
	}
	if since := time.Since(n.began) - time.Duration(n.leasedAfter.Load()); since > loopLimit {
		return fmt.Errorf("leases were last looked after %s ago", since.Round(time.Second))
	}
	for _, m := range n.all() {
		if !m.resumed.Load() && time.Since(n.began) < time.Minute {
			continue
		}
		if err := m.ping(ctx); err != nil {
			return fmt.Errorf("the state machine of %s does not answer: %w", m.name, err)
		}
	}
	return nil
}

func (m *machine) ping(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case m.in <- message{kind: evPing, reply: reply}:
	case <-m.quit:
		return nil
	case <-m.n.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-reply:
		return err
	case <-m.quit:
		return nil
	case <-m.n.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Unattended names the VMs of which a primary runs here whose peer may go on at any moment: someone has to be there to silence it then.
func (n *Node) Unattended() []string {
	var out []string
	for _, vm := range n.VMs() {
		m, err := n.machine(vm)
		if err != nil {
			continue
		}
		rec, _ := m.info()
		if s := m.State(); m.current() != nil && len(rec.Members) > 1 && s != Secondary && s != Standby {
			out = append(out, vm)
		}
	}
	return out
}

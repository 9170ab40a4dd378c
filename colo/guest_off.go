package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// A guest that switches itself off under protection. The primary that has seen it is the last word: its disks have all that its guest wrote, and nothing
// will be added, with or without a QEMU. So it claims for its disks where another copy would have to live, and the VM ends as a lone one that is
// stopped. The secondary gives way as soon as it hears of it: promoted, its copy would only switch itself off as well, and where a QEMU ends with its guest
// it would do so before the overlays are committed.
//
// What decides is still the arbiter: a primary that can't reach it waits, and one that finds the secondary gone on is outdated like any other.

// giveWayTimeout is how long the secondary may take to end its copy.
const giveWayTimeout = 5 * time.Second

// noteOff notes that the guest here has switched itself off. For a primary's that is its owner's wish, and it outlives whatever becomes of this node now.
func (m *machine) noteOff() {
	m.mu.Lock()
	m.guestOff = true
	primary := m.rec.Role == state.RolePrimary && m.rec.Want != WantStopped
	m.mu.Unlock()
	if primary {
		m.update(func(v *state.VM) { v.Want = WantStopped })
	}
}

func (m *machine) guestIsOff() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guestOff
}

func (m *machine) guestRuns() {
	m.mu.Lock()
	m.guestOff = false
	m.mu.Unlock()
}

// final says whether the guest here has switched itself off as a primary with all of its disks, which count as far as this node knows.
func (m *machine) final() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guestOff && m.rec.Role == state.RolePrimary && slices.Contains(m.rec.Members, m.n.cfg.Name) &&
		len(offline(m.rec)) == 0 && len(incomplete(m.rec, m.spec)) == 0
}

// giveWay is what a secondary does that hears from the primary that its guest is off. One whose question the arbiter may have answered needs that answer.
func (m *machine) giveWay(err error) error {
	if m.marked().asked {
		m.deferred()
		return nil
	}
	m.update(func(v *state.VM) { v.Want = WantStopped })
	return fmt.Errorf("%w: %w", errLost, err)
}

// wayGiven makes a peer that no arbiter could let go on end its copy, and forgo it from a generation on. That is the proof that stands in for an arbiter.
func (m *machine) wayGiven(ctx context.Context, generation uint64) error {
	rec, _ := m.info()
	next := arbiter.Record{VM: rec.ID, Generation: generation, Members: []string{m.n.cfg.Name}, By: m.n.cfg.Name}
	p, _, err := m.partner()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, giveWayTimeout)
		defer cancel()
		err = p.Drop(ctx, DropRequest{Record: next})
	}
	switch {
	case errors.Is(err, ErrGenerationOld):
		return fmt.Errorf("%w: %w", errLost, err)
	case err != nil:
		return fmt.Errorf("%w: %w, and the peer has not given way: %w", errUndecided, ErrNoArbiter, err)
	}
	return m.updateNow(ctx, setRecord(next.Generation, next.Members))
}

// tellOff lets the peer know that the VM is off, and whose disks count. One that can't be told finds out when it asks.
func (m *machine) tellOff(ctx context.Context) {
	p, info, err := m.partner()
	if err != nil || !m.peerAlive() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, giveWayTimeout)
	defer cancel()
	if err := p.Drop(ctx, DropRequest{Record: m.record()}); err != nil {
		m.log.Info("the peer was not told that the guest is off", "peer", info.Name, "err", err)
	}
}

package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// nobodyRuns keeps a node from starting a copy of its own while the other current one runs: the arbiter would let it, as both are current. A peer
// that can't be asked gets the time to notice the loss of this node's copy and to cut its tap.
func (m *machine) nobodyRuns(ctx context.Context, lossy bool) error {
	if err := m.runsOnAnother(ctx); err != nil {
		return err
	}
	rec, spec := m.info()
	p, info, err := m.partner()
	if err != nil || aloneIn(rec, m.n.cfg.Name) {
		return nil //nolint:nilerr // there is no other copy
	}
	ictx, cancel := context.WithTimeout(ctx, m.n.cfg.HeartbeatTimeout)
	defer cancel()
	there, err := p.Inquire(ictx, m.name)
	switch {
	case err == nil && there.runs(): // a secondary is about to go on, with all that the guest has in memory
		return fmt.Errorf("%w: %s runs it (%s)", ErrNotCurrent, info.Name, there.State)
	case err == nil && !lossy && there.Generation >= rec.Generation && !slices.Contains(there.Members, m.n.cfg.Name):
		// By a person's word without the arbiter, who can't say so yet.
		return fmt.Errorf("%w: it is at generation %d here, %s was the last to run it, at %d: %w", ErrNotCurrent, rec.Generation, info.Name, there.Generation, errLost)
	case err == nil || !isUnreachable(err):
		return nil
	}
	return sleepUntil(ctx, time.Now().Add(m.n.cfg.HeartbeatTimeout+time.Duration(spec.Protection.CheckpointDelay)+3*m.n.cfg.HeartbeatInterval))
}

// claimStart is the claim of a copy that is to boot. Unlike a running one it also refuses when this node knows itself to be stale.
func (m *machine) claimStart(ctx context.Context) error {
	me := m.n.cfg.Name
	rec, spec := m.info()
	if rec.Generation == 0 && m.n.cfg.Arbiter == nil {
		m.update(setRecord(1, []string{me}))
		return nil
	}
	if rec.Generation > 0 && !slices.Contains(rec.Members, me) && !m.entrusted(ctx) {
		return fmt.Errorf("%w: at generation %d the current copy is on %v: %w", ErrNotCurrent, rec.Generation, rec.Members, errLost)
	}
	if len(offline(rec)) > 0 {
		return fmt.Errorf("%w: %w: %w", ErrNotCurrent, m.offlineError(rec), errLost)
	}
	if names := incomplete(rec, spec); len(names) > 0 {
		return fmt.Errorf("%w: incomplete disks here: %s: %w", ErrNotCurrent, strings.Join(names, ", "), errLost)
	}
	if m.n.cfg.Arbiter == nil {
		if slices.Equal(rec.Members, []string{me}) {
			return nil
		}
		return fmt.Errorf("%w: at generation %d the copy on another node of %v may have gone on: %w", ErrNotCurrent, rec.Generation, rec.Members, ErrNoArbiter)
	}
	if rec.Role != state.RolePrimary { // it may have gone on without a note here
		held, err := m.held(ctx)
		switch {
		case err != nil && !errors.Is(err, arbiter.ErrNoRecord):
			return err
		case err == nil && hidden(rec, held, me):
			return fmt.Errorf("%w: the copy here went on in generation %d while the state folder could not be written: its disks may lack what it wrote", ErrNotCurrent, held.Generation)
		}
	}
	_, err := m.advance(ctx, []string{me})
	switch {
	case errors.Is(err, errLost):
		return fmt.Errorf("%w: %w", ErrNotCurrent, err)
	case errors.Is(err, arbiter.ErrUnreachable) && aloneIn(rec, me):
		return nil // nobody else could have advanced it
	}
	return err
}

// entrusted says whether the arbiter names this node alone in a generation that this node has not heard of yet. Only a node that counts gives that
// away, and only while this one's half has everything: by a switchover, or see cede.
func (m *machine) entrusted(ctx context.Context) bool {
	rec, _ := m.info()
	if m.n.cfg.Arbiter == nil {
		return false
	}
	held, err := m.held(ctx)
	return err == nil && held.Generation > rec.Generation && slices.Equal(held.Members, []string{m.n.cfg.Name})
}

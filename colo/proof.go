package colo

import (
	"context"
	"fmt"
	"slices"
)

// Without an arbiter the peer's own word is all there is.

// proven asks the peer's node for the proof that stands in for an arbiter: that its copy is dead, and stays so by its own record, and that this one counts. A host that has lost power
// gives it when it is back. It returns errLost when the peer has gone on, and errUndecided when it can't be asked, or may still go on as well as this copy.
func (m *machine) proven(ctx context.Context) error {
	rec, _ := m.info()
	me := m.n.cfg.Name
	there, err := m.inquire(ctx)
	counts := slices.Contains(there.Members, me)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w, and the peer's death is not proven: %w", errUndecided, ErrNoArbiter, err)
	case !counts && there.Generation > rec.Generation && slices.Contains(rec.Members, me):
		m.update(setRecord(there.Generation, there.Members))
		return fmt.Errorf("%w: by the peer's record, generation %d belongs to %v", errLost, there.Generation, there.Members)
	case !slices.Contains(rec.Members, me) && there.Generation <= rec.Generation: // counting in makes a new generation: this is an old record
		return fmt.Errorf("%w: %w, and the peer's record, generation %d of %v, is no newer than the one here that leaves this copy out", errUndecided, ErrNoArbiter, there.Generation, there.Members)
	case !counts || there.Running || there.State != Stopped && there.State != Outdated:
		return fmt.Errorf("%w: %w, and the peer's death is not proven: it is %s there", errUndecided, ErrNoArbiter, there.State)
	}
	return m.wayGiven(ctx, max(rec.Generation, there.Generation)+1)
}

// catchUp takes over the generation that the peer has noted when it gave way to the copy here, if this node did not hear its answer: a handover may have been
// quicker. It is the one that was asked for, the next; a record that is farther behind is an old one, as of a host that was restored. With an arbiter only its word
// makes a generation.
func (m *machine) catchUp(ctx context.Context, peer Peer) error {
	if m.n.cfg.Arbiter != nil {
		return nil
	}
	done, err := m.ask(ctx)
	if err != nil {
		return err
	}
	defer done()
	rec, _ := m.info()
	if !aloneIn(rec, m.n.cfg.Name) {
		return nil
	}
	there, err := peer.Inquire(ctx, m.name)
	if err != nil || there.Generation != rec.Generation+1 || !slices.Equal(there.Members, rec.Members) {
		return nil //nolint:nilerr // it doesn't know the VM, or says what it has against it when it is asked to be the standby
	}
	return m.updateNow(ctx, setRecord(there.Generation, there.Members))
}

// goesOnThere says whether the peer says that it goes on without the copy here, which it has not counted in or has counted out.
func (m *machine) goesOnThere(ctx context.Context) bool {
	there, err := m.inquire(ctx)
	if rec, _ := m.info(); err != nil || there.Generation < rec.Generation || slices.Contains(there.Members, m.n.cfg.Name) {
		return false
	}
	switch there.State {
	case Solo, Syncing, Starting, Stopping, Stopped: // in all others it may count this copy in, or has
		return true
	}
	return false
}

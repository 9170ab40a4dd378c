package colo

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Consent says whether this node agrees to a record that leaves its own copy out: only while that is silent and stays so. It is for an arbiter that asks both nodes
// (package fence). An error means that the peer has to wait and ask again; it will see the copy cut its tap, or hear that it is dead.
func (n *Node) Consent(ctx context.Context, next arbiter.Record) error {
	if next.Has(n.cfg.Name) {
		return nil
	}
	rec := next
	rec.Generation = math.MaxUint64 // whatever is known here
	m, err := n.serving(ctx, rec)
	switch {
	case errors.Is(err, ErrNoVM):
		return nil
	case err != nil:
		return err
	}
	if err := m.known(); err != nil {
		return err
	}
	switch s := m.State(); s {
	case Standby, Secondary:
		return nil
	case Stopped, Outdated, Failed: // a copy may be about to be ended, or to run on unseen
		if m.noCopy() {
			return nil
		}
		return fmt.Errorf("%s on %s is %s, but its copy has not ended yet", m.name, n.cfg.Name, s)
	case Arbitrating:
		if m.marked().cut {
			return nil
		}
		return fmt.Errorf("%s on %s: its tap is not cut yet", m.name, n.cfg.Name)
	default:
		return fmt.Errorf("%s on %s is %s: its copy may still speak", m.name, n.cfg.Name, s)
	}
}

package colo

import (
	"context"
	"time"

	"github.com/coloctl/coloctl/state"
)

// How often a daemon compares the halves of its protected VMs, and how much of each half it reads for that, in bytes a second.
const (
	DefaultVerifyEvery = 30 * 24 * time.Hour
	DefaultVerifySpeed = 32 << 20
)

const (
	// verifyLook is how often a node looks whether a comparison is due.
	verifyLook = 10 * time.Minute
	// firstVerify is how long a VM that was never compared must have been protected.
	firstVerify = 24 * time.Hour
)

// verifyDue says whether the halves of a VM that has been protected since a moment are to be compared now.
func verifyDue(last *state.Verify, since, now time.Time, every time.Duration) bool {
	if last == nil {
		return now.Sub(since) >= min(firstVerify, every)
	}
	return now.Sub(last.Ended) >= every && now.Sub(since) >= verifyLook
}

// verifyNowAndThen compares the halves every so often while the VM is protected here. What it finds is in the status and an event; nothing is
// repaired without a person.
func (m *machine) verifyNowAndThen(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(verifyLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.quit:
			return
		case <-ctx.Done():
			return
		}
		rec, _ := m.info()
		if m.State() != Protected || !verifyDue(rec.Verify, m.inState(), time.Now(), every) {
			continue
		}
		if _, err := m.n.Verify(ctx, m.name, VerifyOptions{Limit: m.n.cfg.VerifySpeed}); err != nil {
			m.log.Warn("verify", "err", err)
		}
	}
}

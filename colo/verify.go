package colo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

// VerifyOptions tunes Verify.
type VerifyOptions struct {
	// Limit is how much of each half is read, in bytes a second; 0 is none.
	Limit int64 `json:"limit,omitempty"`
	// Repair copies what differs from the primary's half to the secondary's. For that the VM is unprotected for the moment of a bitmap resync.
	Repair bool `json:"repair,omitempty"`
}

// ErrDiffer is returned by a Verify that has found differences and was not asked to repair them.
var ErrDiffer = errors.New("the halves of a disk differ")

// errNotProtected is returned for a VM whose halves are not meant to be equal.
var errNotProtected = errors.New("only the halves of a protected VM are equal: protect it first, which makes them so")

const (
	verifyWindow = 8 << 20
	// verifyLooks is how often a block that is written all the time is looked at.
	verifyLooks = 5
)

// Verify compares both halves of all disks of a VM that is protected here, while it runs. A block that differs is looked at again around a
// checkpoint, which ends all writes under way, so what the guest writes meanwhile does not count as a difference. The result stays in the status.
func (n *Node) Verify(ctx context.Context, vm string, o VerifyOptions) (state.Verify, error) {
	m, err := n.machine(vm)
	if err != nil {
		return state.Verify{}, err
	}
	if !m.verifying.TryLock() {
		if err := m.noBackup(); err != nil {
			return state.Verify{}, err
		}
		return state.Verify{}, fmt.Errorf("%s: %w already", vm, ErrVerifyRuns)
	}
	defer m.verifying.Unlock()
	c, peer, err := m.verifiable()
	if err != nil {
		return state.Verify{}, err
	}
	v := &verification{m: m, c: c, peer: peer, o: o, key: blockrepl.NewKey(), differ: map[string][]blockrepl.Range{}}
	v.res.Begun = time.Now()
	err = v.run(ctx)
	v.res.Ended = time.Now()
	if err != nil {
		v.res.Error = err.Error()
	}
	if err == nil && v.res.Differed > 0 {
		err = v.mend(ctx)
	}
	m.update(func(rec *state.VM) { r := v.res; rec.Verify = &r })
	m.emit(Event{Kind: "verify", State: m.State(), Text: verifyText(v.res), Fields: map[string]any{"differed": v.res.Differed, "compared": v.res.Compared}})
	return v.res, err
}

// CheckVerify tells why Verify would be refused now, and reads nothing.
func (n *Node) CheckVerify(vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	_, _, err = m.verifiable()
	return err
}

func (m *machine) verifiable() (Copy, Peer, error) {
	c := m.current()
	peer, _, err := m.partner()
	if s := m.State(); s != Protected || c == nil || err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNotProtected, &UnexpectedEventError{VM: m.name, State: s, Event: "verify"})
	}
	return c, peer, nil
}

func verifyText(r state.Verify) string {
	switch {
	case r.Error != "":
		return fmt.Sprintf("ended early after %d bytes: %s", r.Compared, r.Error)
	case r.Repaired:
		return fmt.Sprintf("%d of %d bytes differed and were copied again", r.Differed, r.Compared)
	case r.Differed > 0:
		return fmt.Sprintf("%d of %d bytes differ", r.Differed, r.Compared)
	}
	return fmt.Sprintf("%d bytes are equal", r.Compared)
}

type verification struct {
	m      *machine
	c      Copy
	peer   Peer
	o      VerifyOptions
	here   blockrepl.Sums
	key    []byte
	res    state.Verify
	differ map[string][]blockrepl.Range
}

func (v *verification) there(ctx context.Context, p blockrepl.Part) ([]byte, error) {
	return askSums(ctx, v.peer, SumsRequest{VM: v.m.name, From: v.m.n.cfg.Name, Generation: v.m.record().Generation}, p)
}

func (v *verification) run(ctx context.Context) (err error) {
	here, closeAll, err := v.c.Local(ctx)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		err = errors.Join(err, closeAll(cctx))
	}()
	v.here = here
	_, spec := v.m.info()
	next := time.Now()
	for _, d := range spec.mirrored() {
		for at := int64(0); at < int64(d.Size); at += verifyWindow {
			length := min(verifyWindow, int64(d.Size)-at)
			if v.o.Limit > 0 {
				if err := sleepUntil(ctx, next); err != nil {
					return err
				}
				next = time.Now().Add(time.Duration(float64(length) / float64(v.o.Limit) * float64(time.Second)))
			}
			if err := v.window(ctx, d.Name, int64(d.Size), at, length); err != nil {
				return err
			}
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// window compares a part of a disk.
func (v *verification) window(ctx context.Context, disk string, size, at, length int64) error {
	if s := v.m.State(); s != Protected || !v.m.isCopy(v.c) {
		return fmt.Errorf("the VM is %s", s)
	}
	var here, there []byte
	p := blockrepl.Part{Disk: disk, Key: v.key, Offset: at, Length: length}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { here, err = v.here(gctx, p); return err })
	g.Go(func() (err error) { there, err = v.there(gctx, p); return err })
	if err := g.Wait(); err != nil {
		return err
	}
	if len(here) != len(there) {
		return fmt.Errorf("the peer sent %d bytes of hashes instead of %d", len(there), len(here))
	}
	v.res.Compared += length
	for i := 0; i < len(here); i += blockrepl.SumSize {
		if !bytes.Equal(here[i:i+blockrepl.SumSize], there[i:i+blockrepl.SumSize]) {
			block := at + int64(i/blockrepl.SumSize)*blockrepl.HashBlock
			if err := v.look(ctx, disk, blockrepl.Range{Offset: block, Length: min(blockrepl.HashBlock, size-block)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// look finds out whether a block differs. When this side's has the same content before and after a checkpoint, no write to it was under way in
// between, so the other side must have that content too.
func (v *verification) look(ctx context.Context, disk string, r blockrepl.Range) error {
	p := blockrepl.Part{Disk: disk, Key: v.key, Offset: r.Offset, Length: r.Length}
	for range verifyLooks {
		before, err := v.here(ctx, p)
		if err != nil {
			return err
		}
		if err := v.c.Checkpoint(ctx); err != nil {
			return err
		}
		there, err := v.there(ctx, p)
		if err != nil {
			return err
		}
		after, err := v.here(ctx, p)
		switch {
		case err != nil:
			return err
		case bytes.Equal(there, after):
			return nil
		case bytes.Equal(before, after):
			v.res.Differed += r.Length
			v.differ[disk] = append(v.differ[disk], r)
			v.m.log.Error("the halves of a disk differ", "disk", disk, "offset", r.Offset, "length", r.Length)
			return nil
		}
	}
	v.res.Busy += r.Length
	return nil
}

// mend copies what differs again: it is put on the record of writes, and a bitmap resync follows.
func (v *verification) mend(ctx context.Context) error {
	if !v.o.Repair {
		return fmt.Errorf("%w: %d bytes; to copy them again from %s: coloctl disk verify --repair %s", ErrDiffer, v.res.Differed, v.m.n.cfg.Name, v.m.name)
	}
	for disk, ranges := range v.differ {
		if err := v.c.Mark(ctx, disk, ranges); err != nil {
			return fmt.Errorf("%w, and could not be put on record: %w", ErrDiffer, err)
		}
	}
	if err := v.m.request(ctx, ReqUnprotect, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrDiffer, err)
	}
	if err := v.m.request(ctx, ReqProtect, ProtectOptions{Mode: blockrepl.Bitmap}); err != nil {
		return fmt.Errorf("%w; the VM is not protected: %w", ErrDiffer, err)
	}
	v.res.Repaired = true
	return nil
}

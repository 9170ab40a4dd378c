package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// records is what a host's state folder holds. It keeps one VM, by the rules of package state. A write takes a while, and is lost as a
// whole when the host loses power or the daemon is killed before it is over.
type records struct {
	h *Host

	mu   sync.Mutex
	kept kept
}

var errFull = errors.New("no space left on device")

type kept struct {
	vm      *state.VM
	open    []state.Intent
	next    uint64
	entries uint64
}

// daemonRecords is records as one run of the daemon uses them.
type daemonRecords struct {
	*records
	e *env
}

func (r daemonRecords) List() ([]state.VM, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept.vm == nil {
		return nil, nil
	}
	return []state.VM{r.kept.vm.Clone()}, nil
}

// behind says whether it is on record that the host's half of the disk lacks something.
func (r *records) behind() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept.vm != nil && r.kept.vm.Disks["vda"].Behind
}

// alone says whether it is on record that the host's copy alone counts.
func (r *records) alone(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept.vm == nil || slices.Equal(r.kept.vm.Members, []string{host})
}

func (r daemonRecords) Get(name string) (state.VM, error) {
	vms, _ := r.List()
	for _, v := range vms {
		if v.Name == name {
			return v, nil
		}
	}
	return state.VM{}, state.ErrNotFound
}

func (r daemonRecords) Create(v state.VM) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept.vm != nil {
		return state.ErrExists
	}
	if v.ID == "" {
		v.ID = "vm-1"
	}
	v = v.Clone()
	r.kept.vm = &v
	return nil
}

func (r daemonRecords) Delete(string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept.vm = nil
	return nil
}

func (r daemonRecords) Ports(_ string, uses []string, _ func(int) bool) (map[string]int, error) {
	out := map[string]int{}
	for i, u := range uses {
		out[u] = 9000 + i
	}
	return out, nil
}

func (r daemonRecords) ReleasePorts(string, ...string) error { return nil }

func (r daemonRecords) Write(do func(colo.RecordsTx) error) error {
	w := r.h.w
	lo, hi := 300*time.Microsecond, 3*ms
	w.mu.Lock()
	if w.chance(r.h.actor(opStore), 2) { // other writes go first
		hi = 300 * ms
	}
	if r.h.slowDisk {
		lo, hi = 500*ms/w.slow, 3000*ms/w.slow // what slows everything down is no reason to be slower still, long after all is well
	}
	full := r.h.fullDisk
	w.mu.Unlock()
	return r.e.do(context.Background(), opStore, lo, hi, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		tx := &recordsTx{kept: r.kept, h: r.h}
		tx.open = slices.Clone(r.kept.open)
		if err := do(tx); err != nil {
			return err
		}
		if full {
			return errFull
		}
		r.kept = tx.kept
		return nil
	})
}

type recordsTx struct {
	kept
	h *Host
}

func (tx *recordsTx) Update(name string, change func(*state.VM) error) error {
	if tx.vm == nil || tx.vm.Name != name {
		return state.ErrNotFound
	}
	next := tx.vm.Clone()
	if err := change(&next); err != nil {
		return err
	}
	if err := state.CheckUpdate(tx.vm, &next); err != nil {
		return err
	}
	tx.vm = &next
	return nil
}

func (tx *recordsTx) Append(state.Entry) (uint64, error) {
	tx.entries++
	return tx.entries, nil
}

func (tx *recordsTx) OpenIntents() ([]state.Intent, error) { return slices.Clone(tx.open), nil }

func (tx *recordsTx) Begin(in state.Intent) (uint64, error) {
	for _, o := range tx.open {
		if o.VM == in.VM {
			return 0, &state.IntentOpenError{Open: o}
		}
	}
	tx.next++
	in.ID = tx.next
	tx.open = append(tx.open, in)
	return in.ID, nil
}

func (tx *recordsTx) StepDone(id uint64, i int, _ error) error {
	for _, o := range tx.open {
		if o.ID == id && i < len(o.Steps) {
			return nil
		}
	}
	return fmt.Errorf("intent %d: %w", id, state.ErrIntentEnded)
}

func (tx *recordsTx) End(id uint64, _ state.Outcome) error {
	tx.open = slices.DeleteFunc(tx.open, func(o state.Intent) bool { return o.ID == id })
	return nil
}

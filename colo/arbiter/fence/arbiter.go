package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/keyed"
)

// Errors of the arbiter.
var (
	// ErrStale is returned, with arbiter.ErrUnreachable, by a node whose host was restarted since it last agreed with the peer, while the peer doesn't
	// answer. Powering the peer off would not prove that it hadn't gone on alone before.
	ErrStale = errors.New("this host was restarted since it last agreed with the peer")

	// ErrSplit is returned when both nodes hold records that exclude each other: a fence device lied, or a person forced one.
	ErrSplit = errors.New("both nodes went on by themselves")

	// ErrFencing is returned, with arbiter.ErrUnreachable, while a fencing isn't finished yet. Asking again joins it.
	ErrFencing = errors.New("the peer is being fenced")
)

// Fencer powers the peer off. Nil means that it is proven. [Agent] is one.
type Fencer interface {
	Fence(ctx context.Context) error
}

// Options of New.
type Options struct {
	Node, Peer string // names. Required.
	Path       string // of the node's own file, made if it isn't there. Required.
	Exchange   Peer   // Required.
	// Fencers are tried in this order until one succeeds. Without any, a peer that doesn't answer can't be replaced.
	Fencers []Fencer
	// Delay before fencing, to let the peer's fencing of this node win when both are alive. Set it on one node only.
	Delay time.Duration
	// FenceTimeout bounds all of a fencing. Default: 3 min.
	FenceTimeout time.Duration
	// Timeout for a call, if its context doesn't end earlier, and for one exchange with the peer. Default: 5 s and 1 s.
	Timeout, Attempt time.Duration
	// Consent, if set, is asked before this node, a member, agrees to a record without itself. An error refuses it, and the peer has to wait.
	Consent func(ctx context.Context, next arbiter.Record) error
	// Boot identifies this host's run. Default: the kernel's boot id.
	Boot string
	Log  *slog.Logger // Default: slog.Default
}

// Arbiter is one of two nodes' halves of an [arbiter.Arbiter]. Both keep the record. A change is stored by the peer first, and if it doesn't
// answer, only a fencing takes its place.
type Arbiter struct {
	opt   Options
	store *store

	ctx    context.Context // of fencings, ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	locks keyed.Locks // of VMs

	mu      sync.Mutex // also makes each read and write of the store one
	flights map[string]*flight
	seq     uint64
	// seen of the peer's messages, by VM: session, seq. A VM that is forgotten keeps its entry: a message of before that comes late would otherwise be taken for a new one, and bring its record
	// back. It is a few dozen bytes for each VM that was deleted since the daemon has begun, as no two have the same id.
	seen    map[string][2]uint64
	asking  map[string]bool // VMs whose own unfinished change is being asked about, for the peer's sake
	unheard map[string]bool // VMs that the peer was asked to leave to this node, and whose answer hasn't come
	job     *job
	fenced  bool // the peer is off, and hasn't been heard of since
}

var _ arbiter.Arbiter = (*Arbiter)(nil)

// flight is an own change that isn't finished.
type flight struct {
	phase phase
}

type phase int

const (
	sending phase = iota
	decided
	fencing
)

// New opens the node's file.
func New(o Options) (*Arbiter, error) {
	if o.Node == "" || o.Peer == "" || o.Node == o.Peer || o.Exchange == nil {
		return nil, errors.New("fence arbiter needs the names of two nodes, and a way between them")
	}
	if o.FenceTimeout <= 0 {
		o.FenceTimeout = 3 * time.Minute
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Attempt <= 0 {
		o.Attempt = time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Boot == "" {
		var err error
		if o.Boot, err = bootID(); err != nil {
			return nil, err
		}
	}
	s, err := openStore(o.Path)
	if err != nil {
		return nil, err
	}
	a := &Arbiter{opt: o, store: s, flights: map[string]*flight{}, seen: map[string][2]uint64{}, asking: map[string]bool{}, unheard: map[string]bool{}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a, nil
}

// Close ends a fencing that is under way, waits for it, and closes the file.
func (a *Arbiter) Close() error {
	a.mu.Lock() // after this no fencing begins
	a.cancel()
	a.mu.Unlock()
	a.wg.Wait()
	return a.store.db.Close()
}

// Run tells the peer, when it is back, what it could not be told at once. It returns when ctx ends.
func (a *Arbiter) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		vms, err := a.store.untold()
		if err != nil {
			return err
		}
		for _, vm := range vms {
			if _, err := a.Get(ctx, vm); err != nil && ctx.Err() == nil {
				a.opt.Log.Debug("the peer isn't told yet", "vm", vm, "err", err)
			}
		}
	}
}

// Get implements arbiter.Arbiter.
func (a *Arbiter) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	ctx, done, err := a.begin(ctx, vm)
	if err != nil {
		return arbiter.Record{}, err
	}
	defer done()
	k, err := a.settle(ctx, vm)
	if err != nil {
		return arbiter.Record{}, err
	}
	if k.Untold {
		_, _ = a.tell(ctx, vm) // what it says is true whether or not the peer has heard of it
	}
	if k.Record == nil {
		return arbiter.Record{}, fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
	}
	return k.Record.Normal(), nil
}

// Advance implements arbiter.Arbiter.
func (a *Arbiter) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	if err := a.valid(next, a.opt.Node); err != nil {
		return arbiter.Record{}, err
	}
	next = next.Normal()
	ctx, done, err := a.begin(ctx, next.VM)
	if err != nil {
		return arbiter.Record{}, err
	}
	defer done()
	f, land := a.takeOff(next.VM)
	defer land()
	for {
		k, err := a.settle(ctx, next.VM)
		if err != nil {
			return arbiter.Record{}, err
		}
		stored, changed, err := arbiter.Decide(k.Record, next)
		switch {
		case err != nil:
			return arbiter.Record{}, err
		case !changed && k.Untold && stored.Equal(next):
			if told, err := a.tell(ctx, next.VM); !told {
				return arbiter.Record{}, unreachable(err)
			}
			return stored, nil
		case !changed:
			return stored, nil
		case k.Record != nil && !k.Record.Has(a.opt.Peer):
			return a.decide(ctx, f, k, next)
		}
		if got, finished, err := a.agree(ctx, f, k, next); finished || err != nil {
			return got, err
		}
		if err := pause(ctx); err != nil {
			return arbiter.Record{}, err
		}
	}
}

// Forget implements arbiter.Arbiter. It needs the peer.
func (a *Arbiter) Forget(ctx context.Context, vm string, generation uint64) error {
	ctx, done, err := a.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer done()
	_, land := a.takeOff(vm)
	defer land()
	for {
		k, err := a.settle(ctx, vm)
		switch {
		case err != nil:
			return err
		case k.Record == nil:
			return nil
		case k.Record.Generation != generation:
			return fmt.Errorf("%w: %s is at %d, not %d", arbiter.ErrConflict, vm, k.Record.Generation, generation)
		}
		// Until the peer has said whether it is done there, nothing else is begun with this record.
		pending := k
		pending.Forgetting = true
		if err := a.swap(vm, k, pending); err != nil {
			return err
		}
		r, err := a.exchange(ctx, a.message(kindForget, vm, k, Message{Generation: generation}))
		switch {
		case err != nil && !errors.Is(err, ErrAnswered):
			return unreachable(err)
		case err == nil && !r.Busy && r.Refused == "":
			if _, err := a.merge(vm, r.said()); err != nil || r.Epoch > k.Epoch {
				return err // done; what may be there by now was made afterwards
			}
			continue
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// message fills in what every message says about the own record.
func (a *Arbiter) message(kind, vm string, k kept, m Message) Message {
	m.Kind, m.VM, m.Have, m.Epoch, m.Sure = kind, vm, k.Record, k.Epoch, a.current(k)
	return m
}

// decide is for a node that alone may change the record: it stores the next one, and then tells the peer if that is to be a member.
func (a *Arbiter) decide(ctx context.Context, f *flight, k kept, next arbiter.Record) (arbiter.Record, error) {
	untold := next.Has(a.opt.Peer)
	if err := a.swap(next.VM, k, kept{Record: &next, Epoch: k.Epoch, Boot: a.opt.Boot, Untold: untold}); err != nil {
		return arbiter.Record{}, err
	}
	if !untold {
		return next, nil
	}
	a.set(f, decided)
	if told, err := a.tell(ctx, next.VM); !told {
		return arbiter.Record{}, unreachable(err)
	}
	return next, nil
}

// agree asks the peer to store the next record, and fences it if it must. It isn't finished if the peer has to be asked again.
func (a *Arbiter) agree(ctx context.Context, f *flight, k kept, next arbiter.Record) (got arbiter.Record, finished bool, err error) {
	alone := k.Record != nil && !next.Has(a.opt.Peer)
	if !alone {
		// Whether it is stored will be for the peer to say.
		pending := k
		pending.Offered = &next
		if err := a.swap(next.VM, k, pending); err != nil {
			return arbiter.Record{}, false, err
		}
	} else {
		a.mu.Lock()
		a.unheard[next.VM] = true
		a.mu.Unlock()
	}
	r, err := a.exchange(ctx, a.message(kindStore, next.VM, k, Message{Next: &next}))
	switch {
	case errors.Is(err, ErrAnswered), err == nil && (r.Busy || r.Refused != ""):
		if r.Refused != "" {
			a.opt.Log.Warn("the peer doesn't agree", "vm", next.VM, "record", next, "why", r.Refused)
		}
		return arbiter.Record{}, false, nil
	case err == nil:
		m, err := a.merge(next.VM, r.said())
		if err == nil && r.Have != nil && r.Have.Equal(next) {
			return next, true, nil // also if it has been replaced since: this is what the claim came to
		}
		if err != nil || m.Record == nil || m.Record.Equal(*deref(k.Record)) {
			return arbiter.Record{}, false, err
		}
		return m.Record.Normal(), true, nil
	case !alone || len(a.opt.Fencers) == 0:
		return arbiter.Record{}, true, unreachable(err)
	}
	if err := a.takeAim(f, next.VM, k); err != nil {
		return arbiter.Record{}, false, nil
	}
	defer a.set(f, sending)
	if err := a.cutOff(ctx, next.VM); err != nil {
		if errors.Is(err, errPeerBack) {
			return arbiter.Record{}, false, nil
		}
		return arbiter.Record{}, true, unreachable(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.fenced {
		return arbiter.Record{}, false, nil // it was heard of again
	}
	if err := a.swapLocked(next.VM, k, kept{Record: &next, Epoch: k.Epoch, Boot: a.opt.Boot}); err != nil {
		return arbiter.Record{}, true, err
	}
	delete(a.unheard, next.VM)
	return next, true, nil
}

// takeAim begins a fencing if nothing has changed since it was decided on. From now on the peer gets no agreement.
func (a *Arbiter) takeAim(f *flight, vm string, was kept) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, err := a.store.load(vm)
	if err == nil && !k.same(was) {
		err = errChanged
	}
	if err == nil {
		f.phase = fencing
	}
	return err
}

func deref(r *arbiter.Record) *arbiter.Record {
	if r == nil {
		return &arbiter.Record{}
	}
	return r
}

// settle returns what is certain about a VM, after asking the peer if need be.
func (a *Arbiter) settle(ctx context.Context, vm string) (kept, error) {
	for {
		a.mu.Lock()
		k, err := a.store.load(vm)
		a.mu.Unlock()
		if err != nil {
			return kept{}, unreachable(err)
		}
		if a.current(k) {
			return k, nil
		}
		r, err := a.exchange(ctx, a.message(kindCompare, vm, k, Message{}))
		switch {
		case err != nil && !errors.Is(err, ErrAnswered):
			if k.Record != nil && k.Record.Has(a.opt.Node) && k.Offered == nil && !k.Forgetting {
				err = fmt.Errorf("%w: %w", ErrStale, err)
			}
			return kept{}, unreachable(err)
		case err == nil && r.Refused != "":
			return kept{}, unreachable(errors.New(r.Refused))
		case err == nil && !r.Busy:
			m, err := a.merge(vm, r.said())
			if err != nil {
				return kept{}, err
			}
			if m.Record == nil || a.current(m) || !m.Record.Has(a.opt.Node) {
				return m, nil
			}
			return kept{}, unreachable(fmt.Errorf("%w, and the peer knows nothing of %s", ErrStale, vm))
		}
		if err := pause(ctx); err != nil {
			return kept{}, err
		}
	}
}

// current says whether k is certain without asking: this node is a member, the peer could have changed it only by this node's agreement or by powering
// this host off, and neither happened.
func (a *Arbiter) current(k kept) bool {
	r := k.Record
	return r != nil && k.Offered == nil && !k.Forgetting && r.Has(a.opt.Node) && (k.Boot == a.opt.Boot || !r.Has(a.opt.Peer))
}

// tell makes a new member know.
func (a *Arbiter) tell(ctx context.Context, vm string) (told bool, err error) {
	a.mu.Lock()
	k, err := a.store.load(vm)
	a.mu.Unlock()
	if err != nil || !k.Untold {
		return err == nil, err
	}
	r, err := a.exchange(ctx, a.message(kindCompare, vm, k, Message{}))
	switch {
	case err != nil:
		return false, err
	case r.Busy || r.Have == nil || !r.Have.Equal(*k.Record) || r.Epoch != k.Epoch:
		return false, fmt.Errorf("the peer doesn't take %s (%s)", k.Record, r.Refused)
	}
	after := k
	after.Untold = false
	return true, a.swap(vm, k, after)
}

func (a *Arbiter) valid(r arbiter.Record, by string) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if r.By != by {
		return fmt.Errorf("%w: claim by %q sent by node %q", arbiter.ErrInvalid, r.By, by)
	}
	for _, m := range r.Members {
		if !slices.Contains([]string{a.opt.Node, a.opt.Peer}, m) {
			return fmt.Errorf("%w: member %q is neither %s nor %s", arbiter.ErrInvalid, m, a.opt.Node, a.opt.Peer)
		}
	}
	return nil
}

func unreachable(err error) error {
	if errors.Is(err, arbiter.ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: %w", arbiter.ErrUnreachable, err)
}

// pause before the peer is asked again.
func pause(ctx context.Context) error {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return unreachable(context.Cause(ctx))
	case <-t.C:
		return nil
	}
}

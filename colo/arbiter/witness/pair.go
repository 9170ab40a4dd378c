package witness

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

// service is one witness as a pair uses it: each call is sent once.
type service interface {
	once(ctx context.Context, vm string, req request) (answer, error)
	mine(ctx context.Context) (membership, error)
	name() string
}

// PairOptions of NewPair. The zero value is usable.
type PairOptions struct {
	HoldDown time.Duration // how long the deciding witness must be silent before it is given up. Default: 5 s.
	Interval time.Duration // between two looks at the witnesses. Default: 1 s.
	Timeout  time.Duration // for a call, if its context doesn't end earlier. Default: 5 s.
	Log      *slog.Logger  // Default: slog.Default
}

// Pair is an arbiter of two witnesses, of which one may be lost.
//
// # How
//
// Two voters can't outvote each other, so for each VM one of the two decides alone: it has the seat. The seat can move to the other one without
// asking the first: when all members of a VM have promised, in writing, not to use the old seat any more, the other witness takes over the newest
// record that any of them knows, with the next tenure. What strangers do at the old seat after that counts for nothing. Until then a member that
// promised has no arbiter; it may withdraw its promise at the place where it gave it. The promises are kept by the other witness, so the nodes
// needn't reach each other. [Pair.Run] does all this when the seat has been silent for the hold-down.
//
// What makes it safe:
//
//  1. A node writes a claim into its ledger before it sends it, and what it learned before it returns it; a promise lists both. So the newest
//     record of the old seat that anybody acted on is in the promises, or its claimer's promise names those who could have acted on it, and
//     theirs are waited for too.
//  2. A member that hasn't promised knows that the seat hasn't moved: an answer of the seat is enough for it. Anybody else tells the
//     other witness what the seat answered, a refusal too, before it believes it, and is told if that has moved on. Then what it did at
//     the seat may count or not, and isn't done again: the outcome is unknown.
//  3. A member of what? Strangers too can forget a record (a person's word, at a node that isn't counted) and begin a new one, and at a seat that
//     has been given up nobody would stop them; its members would be none. So the seat says since which version only members have
//     changed the record, and membership counts for a node that has told the other witness of that version or a later one.
//  4. A claim or a Forget names the version of 3, and isn't carried out if the record has been begun anew since, however late it
//     arrives. So a claim whose generation has been reached can be taken off the list of 1.
//  5. Tenures only rise, and each has one seat.
//
// # What it gives
//
// Loss of one witness, at any time: after the hold-down both nodes can lose each other again, and one goes on.
//
// # What it does not give
//
//   - Loss of the seat together with a node, within the hold-down or before: the survivor holds. It isn't possible with two voters besides
//     the nodes. The same is true when a member is down that was never counted out.
//   - The first record of a VM, and Forget by a node that isn't a member, need both witnesses.
//   - A node that isn't a member is told so only while both answer; with one it gets ErrUnreachable, and holds.
//   - A node has to have heard of its membership, which Run sees to within its interval, before the seat is lost; and again when the record was begun
//     anew.
//   - Each claim costs two syncs of the node's own disk. With a ledger that is gone a node needs both witnesses once for each VM.
//   - A witness can be replaced by a new one (at another address or with an empty file) while the other one has the seat. A pair can't
//     become a single witness again for VMs that have a record; drop and make them anew.
//
// Both nodes must be configured with the same two witnesses; their order doesn't matter.
type Pair struct {
	opt    PairOptions
	me     string
	svc    [2]service
	ledger book

	mu       sync.Mutex
	instance [2]string    // of the witness that answered last at this place
	answered [2]time.Time // when
	locks    keyed.Locks
}

var _ arbiter.Arbiter = (*Pair)(nil)

// maxTurns bounds how often a call follows the seat.
const maxTurns = 8

// NewPair returns the arbiter of two witnesses for the node of the clients' credentials. ledger is the path of the node's own file, which is
// made if it isn't there; only one process can have it open. The clients stay the caller's to close.
func NewPair(a, b *Client, ledger string, o PairOptions) (*Pair, error) {
	if a.node != b.node {
		return nil, fmt.Errorf("pair of witnesses: clients of two nodes, %s and %s", a.node, b.node)
	}
	l, err := openLedger(ledger)
	if err != nil {
		return nil, err
	}
	return newPair(a, b, a.node, l, o), nil
}

func newPair(a, b service, me string, l book, o PairOptions) *Pair {
	if o.HoldDown <= 0 {
		o.HoldDown = 5 * time.Second
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	now := time.Now()
	return &Pair{opt: o, me: me, svc: [2]service{a, b}, ledger: l, answered: [2]time.Time{now, now}}
}

// Close closes the ledger. Run must have ended.
func (p *Pair) Close() error { return p.ledger.close() }

// Get implements arbiter.Arbiter.
func (p *Pair) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	ans, err := p.call(ctx, vm, request{Op: opGet})
	if err != nil {
		return arbiter.Record{}, err
	}
	if ans.Record == nil {
		return arbiter.Record{}, fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
	}
	return *ans.Record, nil
}

// Advance implements arbiter.Arbiter.
func (p *Pair) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	if err := next.Validate(); err != nil {
		return arbiter.Record{}, err
	}
	if next.By != p.me {
		return arbiter.Record{}, fmt.Errorf("%w: claim by %q sent by node %q", arbiter.ErrInvalid, next.By, p.me)
	}
	next = next.Normal()
	ans, err := p.call(ctx, next.VM, request{Op: opAdvance, Next: &next})
	if err != nil {
		return arbiter.Record{}, err
	}
	if ans.Record == nil {
		return arbiter.Record{}, unreachable(errors.New("an answer without a record"))
	}
	return *ans.Record, nil
}

// Forget implements arbiter.Arbiter.
func (p *Pair) Forget(ctx context.Context, vm string, generation uint64) error {
	_, err := p.call(ctx, vm, request{Op: opForget, Generation: generation})
	return err
}

func (p *Pair) call(ctx context.Context, vm string, req request) (answer, error) {
	if vm == "" {
		return answer{}, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, p.opt.Timeout)
	defer cancel()
	unlock, err := p.lock(ctx, vm)
	if err != nil {
		return answer{}, err
	}
	defer unlock()
	for range maxTurns {
		if err := context.Cause(ctx); err != nil {
			return answer{}, unreachable(err)
		}
		ans, done, err := p.turn(ctx, vm, req)
		if done || err != nil {
			return ans, err
		}
	}
	return answer{}, unreachable(errors.New("the seat moves faster than it can be followed"))
}

// turn does the next thing that has to be done for a call. It isn't the last one if done is false.
func (p *Pair) turn(ctx context.Context, vm string, req request) (ans answer, done bool, err error) {
	pg, found, err := p.ledger.load(vm)
	switch {
	case err != nil:
		return answer{}, false, unreachable(fmt.Errorf("own ledger: %w", err))
	case !found:
		return p.discover(ctx, vm, req)
	case pg.Given != "":
		return answer{}, false, p.retake(ctx, vm, &pg)
	default:
		return p.ask(ctx, vm, &pg, req)
	}
}

// ask asks the seat.
func (p *Pair) ask(ctx context.Context, vm string, pg *page, req request) (ans answer, done bool, err error) {
	i, err := p.find(ctx, vm, pg.Seat.Seat)
	if err != nil {
		return answer{}, false, p.elsewhere(ctx, vm, pg, -1, err)
	}
	// A Forget isn't noted: what it leaves at the seat is believed by nobody who hasn't told the other witness of it.
	fresh := req.Op == opAdvance && pg.expect(*req.Next)
	if fresh {
		if err := p.save(vm, *pg); err != nil {
			return answer{}, false, err
		}
	}
	req.Tenure, req.Since, req.Instance = pg.Seat.Tenure, pg.Seat.Since, pg.Seat.Seat
	ans, err = p.send(ctx, i, vm, req)
	if errors.Is(err, arbiter.ErrUnreachable) {
		lerr := p.elsewhere(ctx, vm, pg, i, err)
		if lerr == nil && req.Op != opGet {
			// It may have been done at the old seat, and that may have been taken over: whoever asks again is told.
			lerr = unreachable(fmt.Errorf("the seat has moved; %w", err))
		}
		return answer{}, false, lerr
	}
	// An answer. It says nothing about an earlier call with the same claim, whose answer was lost.
	before := *pg
	if fresh {
		pg.resolve(*req.Next)
	}
	if err != nil {
		if serr := p.save(vm, *pg); serr != nil {
			return answer{}, false, serr
		}
		switch {
		case errors.Is(err, ErrOtherInstance):
			return answer{}, false, p.elsewhere(ctx, vm, pg, i, unreachable(err))
		case errors.Is(err, arbiter.ErrNoRecord), errors.Is(err, arbiter.ErrConflict):
			// A refusal is a fact as an answer is: only of what is the seat still. What was refused may be asked again.
			if _, done, gerr := p.ask(ctx, vm, pg, request{Op: opGet}); gerr != nil || !done {
				return answer{}, done, gerr
			}
		}
		return answer{}, true, err
	}
	if ans.Moved && pg.follow(ans) {
		return answer{}, false, p.save(vm, *pg)
	}
	if ans.Tenure < pg.Seat.Tenure || ans.Version < pg.Seat.Version || ans.Moved && ans.Since <= pg.Seat.Since {
		return answer{}, true, fmt.Errorf("%w: witness %s has version %d in tenure %d of %s, which was at version %d in tenure %d: it has gone back in time",
			arbiter.ErrNoRecord, p.svc[i].name(), ans.Version, ans.Tenure, vm, pg.Seat.Version, pg.Seat.Tenure)
	}
	pg.learn(sightOf(ans))
	if fresh || before.Seat.older(pg.Seat) || before.Seat.Since != pg.Seat.Since || len(before.Pending) != len(pg.Pending) {
		if err := p.save(vm, *pg); err != nil {
			return answer{}, false, err
		}
	}
	if ans.Moved {
		return answer{}, false, nil // the record was begun anew; that is known now
	}
	if !ans.Member || pg.Told < ans.Since {
		if done, err := p.confirm(ctx, vm, pg, i, req, ans); !done || err != nil {
			return answer{}, done, err
		}
	}
	if req.Op == opForget && !pg.open() {
		return ans, true, p.drop(vm)
	}
	return ans, true, nil
}

// confirm tells the other witness what the seat said, for a node whose promise it wouldn't wait for. If done is false, the seat has moved and the
// request is to be sent there.
func (p *Pair) confirm(ctx context.Context, vm string, pg *page, seat int, req request, ans answer) (done bool, err error) {
	heard, err := p.send(ctx, 1-seat, vm, request{Op: opNote, Sight: &pg.Seat})
	switch {
	case errors.Is(err, ErrSplit):
		return true, err
	case err != nil:
		return true, unreachable(fmt.Errorf("%s isn't known as a member of %s at both witnesses, and only one can be asked: %w", p.me, vm, err))
	case !heard.Moved:
		return true, p.told(vm, pg)
	case !pg.follow(heard):
		return true, unreachable(fmt.Errorf("witness %s speaks of another tenure of %s", p.svc[1-seat].name(), vm))
	}
	if err := p.save(vm, *pg); err != nil {
		return true, err
	}
	if req.Op == opForget || req.Op == opAdvance && ans.Record != nil && ans.Record.Equal(*req.Next) {
		// It was done at the old seat. Either nobody will know of that, or it was taken over, and perhaps followed by other claims.
		return true, unreachable(fmt.Errorf("the seat of %s moved meanwhile", vm))
	}
	return false, nil
}

// told notes that the other witness has heard what the page says of the seat.
func (p *Pair) told(vm string, pg *page) error {
	if pg.Told >= pg.Seat.Since {
		return nil // it says no more than is known
	}
	pg.Told = pg.Seat.Version
	return p.save(vm, *pg)
}

// elsewhere looks, after the seat at place i (-1: at none) gave no answer because of cause, whether the other witness knows of a later one. It returns
// nil if so.
func (p *Pair) elsewhere(ctx context.Context, vm string, pg *page, i int, cause error) error {
	for j := range p.svc {
		if j == i {
			continue
		}
		ans, err := p.send(ctx, j, vm, request{Op: opGet, Look: true})
		if err == nil && pg.follow(ans) {
			return p.save(vm, *pg)
		}
	}
	return cause
}

// discover finds the seat of a VM that isn't in the ledger. It needs both witnesses, as one alone may be the one that was given up by this very node.
func (p *Pair) discover(ctx context.Context, vm string, req request) (ans answer, done bool, err error) {
	both, err := p.look(ctx, vm)
	if err != nil {
		return answer{}, false, err
	}
	top, plain, records := uint64(0), 0, 0
	for i, a := range both {
		top = max(top, a.Tenure)
		if a.Seen != nil {
			top = max(top, a.Seen.Tenure)
		}
		if a.Tenure == 0 && a.Record != nil {
			plain, records = i, records+1
		}
	}
	if records == 2 || records == 1 && top > 0 || top > 0 && both[0].Tenure == top && both[1].Tenure == top {
		return answer{}, true, fmt.Errorf("%w: %s", ErrSplit, vm)
	}
	if top > 0 {
		for i, a := range both {
			if a.Tenure != top {
				continue
			}
			pg := page{Seat: sightOf(a), Seq: both[1-i].Seq}
			if other := both[1-i]; slices.Contains(other.Given, p.me) {
				pg.Given = other.Instance // a promise from before this ledger was lost
			}
			return answer{}, false, p.save(vm, pg)
		}
		for i, a := range both {
			if s := both[1-i].Seen; s != nil && s.Tenure == top && s.Seat == a.Instance {
				return answer{}, false, nil // it got the seat between the two answers
			}
		}
		return answer{}, false, unreachable(fmt.Errorf("neither of the two witnesses decides on %s", vm))
	}
	first := 0
	if both[1].Instance < both[0].Instance {
		first = 1
	}
	switch {
	case records == 1 && !both[plain].Record.Has(p.me):
		// One witness was used until now, and it still is.
		if req.Op == opForget {
			return answer{}, true, fmt.Errorf("%w: %s is no member of %s", ErrForbidden, p.me, vm)
		}
		return both[plain], true, nil
	case records == 1:
		first = plain
	case req.Op == opForget, req.Op == opGet:
		return answer{}, true, nil
	case req.Next.Generation != 1:
		return answer{}, true, fmt.Errorf("%w: %s claims generation %d of %s", arbiter.ErrNoRecord, p.me, req.Next.Generation, vm)
	}
	_, err = p.send(ctx, first, vm, request{Op: opFound, Instance: both[first].Instance})
	return answer{}, false, err
}

// retake is called when this node has given up the seat: by now the other witness may have it, or else the promise is withdrawn.
func (p *Pair) retake(ctx context.Context, vm string, pg *page) error {
	moved, err := p.promise(ctx, vm, pg)
	if moved || err != nil {
		return err
	}
	pg.Seq++
	if err := p.save(vm, *pg); err != nil {
		return err
	}
	i, err := p.find(ctx, vm, pg.Given)
	if err != nil {
		return err
	}
	ans, err := p.send(ctx, i, vm, request{Op: opWithdraw, Instance: pg.Given, Sight: &pg.Seat, Seq: pg.Seq})
	switch {
	case err != nil:
		return unreachable(err)
	case pg.follow(ans):
	case ans.Seq != pg.Seq:
		return unreachable(fmt.Errorf("withdrawal %d wasn't taken, the last is %d", pg.Seq, ans.Seq))
	default:
		pg.Given = ""
	}
	return p.save(vm, *pg)
}

// promise sends the promise that is in the page, perhaps again, and says whether the seat has moved by that.
func (p *Pair) promise(ctx context.Context, vm string, pg *page) (moved bool, err error) {
	i, err := p.find(ctx, vm, pg.Given)
	if err != nil {
		return false, err
	}
	ans, err := p.send(ctx, i, vm, request{Op: opPromise, Instance: pg.Given, Sight: &pg.Seat, Seq: pg.Seq, Pending: pg.Pending})
	if err != nil {
		return false, unreachable(err)
	}
	if pg.follow(ans) {
		p.opt.Log.Warn("the witness of a VM has changed", "vm", vm, "witness", p.svc[i].name(), "tenure", pg.Seat.Tenure)
		return true, p.save(vm, *pg)
	}
	if !slices.Contains(ans.Given, p.me) { // a withdrawal that was believed lost has come after all: it is given anew
		pg.Seq = max(pg.Seq, ans.Seq) + 1
		return false, p.save(vm, *pg)
	}
	return false, nil
}

func unreachable(err error) error {
	if errors.Is(err, arbiter.ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: %w", arbiter.ErrUnreachable, err)
}

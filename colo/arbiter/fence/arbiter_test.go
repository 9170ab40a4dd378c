package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

// hosts are two nodes a and b, with power, and the links between them.
type hosts struct {
	t      testing.TB
	dir    string
	change func(*Options)

	mu      sync.Mutex
	up      map[string]*Arbiter // nil: off
	boots   int
	linkCut bool
	replies bool // replies are lost
	broken  bool // fence devices fail
	fenced  map[string]int
	cuts    map[string]int
	dying   map[string]chan struct{}     // closed when the process that was killed is gone
	passing func(from string, m Message) // if set, called before a message arrives
}

func newHosts(t testing.TB, change func(*Options)) *hosts {
	t.Helper()
	h := &hosts{t: t, dir: t.TempDir(), change: change, up: map[string]*Arbiter{}, fenced: map[string]int{}, cuts: map[string]int{}, dying: map[string]chan struct{}{}}
	h.boot("a")
	h.boot("b")
	t.Cleanup(func() {
		for _, n := range []string{"a", "b"} {
			h.off(n)
			h.gone(n)
		}
	})
	return h
}

func other(node string) string { return map[string]string{"a": "b", "b": "a"}[node] }

// gone waits for the end of the process that was killed, if there is one.
func (h *hosts) gone(node string) {
	h.mu.Lock()
	d := h.dying[node]
	h.mu.Unlock()
	if d != nil {
		<-d
	}
}

// boot starts a host that is off: with another boot id, and nothing but its file.
func (h *hosts) boot(node string) { h.start(node, "", 0) }

// start starts the daemon, in an old boot only if the power wasn't cut since.
func (h *hosts) start(node, boot string, cuts int) {
	for {
		h.gone(node)
		h.mu.Lock()
		if d := h.dying[node]; d != nil {
			select {
			case <-d:
			default: // somebody else was faster, and it is off again
				h.mu.Unlock()
				continue
			}
		}
		break
	}
	defer h.mu.Unlock()
	if h.up[node] != nil {
		return
	}
	if boot != "" && h.cuts[node] != cuts {
		return
	}
	if boot == "" {
		h.boots++
		boot = fmt.Sprint("boot ", h.boots)
	}
	o := Options{
		Node: node, Peer: other(node), Path: filepath.Join(h.dir, node), Exchange: wire{h, node}, Boot: boot,
		Fencers: []Fencer{device{h, other(node)}}, Log: slog.New(slog.DiscardHandler),
	}
	if h.change != nil {
		h.change(&o)
	}
	a, err := New(o)
	if err != nil {
		h.t.Error(err)
		return
	}
	a.store.db.NoSync = true
	h.up[node] = a
}

// off cuts a host's power: whatever it was about to say isn't said. It doesn't wait for the process to be gone, as that may be the caller.
func (h *hosts) off(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cuts[node]++
	h.kill(node)
}

func (h *hosts) kill(node string) (boot string) {
	a := h.up[node]
	if a == nil {
		return ""
	}
	h.up[node] = nil
	gone := make(chan struct{})
	h.dying[node] = gone
	go func() { // start and the end of the test wait for it
		_ = a.Close()
		close(gone)
	}()
	return a.opt.Boot
}

// restart is a restart of the daemon: the boot stays.
func (h *hosts) restart(node string) {
	h.mu.Lock()
	boot, cuts := h.kill(node), h.cuts[node]
	h.mu.Unlock()
	if boot != "" {
		h.start(node, boot, cuts)
	}
}

func (h *hosts) node(n string) *Arbiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up[n]
}

type device struct {
	h      *hosts
	target string
}

func (d device) Fence(ctx context.Context) error {
	d.h.mu.Lock()
	broken := d.h.broken
	attacker := d.h.up[other(d.target)]
	d.h.mu.Unlock()
	if broken || attacker == nil || ctx.Err() != nil {
		return ErrAgent
	}
	d.h.off(d.target)
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	d.h.fenced[d.target]++
	return nil
}

type wire struct {
	h    *hosts
	from string
}

func (w wire) Exchange(ctx context.Context, m Message) (Reply, error) {
	w.h.mu.Lock()
	cut, to, lost, self := w.h.linkCut, w.h.up[other(w.from)], w.h.replies, w.h.up[w.from]
	w.h.mu.Unlock()
	if cut || to == nil || self == nil || ctx.Err() != nil {
		return Reply{}, errors.New("no way")
	}
	if w.h.passing != nil {
		w.h.passing(w.from, m)
	}
	r, err := to.Receive(ctx, w.from, m)
	if lost {
		return Reply{}, errors.New("reply lost")
	}
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	if w.h.up[other(w.from)] != to || w.h.up[w.from] != self {
		return Reply{}, errors.New("power lost")
	}
	return r, err
}

// view is a node whose answers count only while its host is on.
type view struct {
	h    *hosts
	node string
}

func ask[T any](v view, do func(a *Arbiter) (T, error)) (out T, err error) {
	a := v.h.node(v.node)
	if a == nil {
		return out, unreachable(errors.New("this host is off"))
	}
	out, err = do(a)
	if v.h.node(v.node) != a {
		return out, unreachable(errors.New("this host was powered off"))
	}
	return out, err
}

func (v view) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	return ask(v, func(a *Arbiter) (arbiter.Record, error) { return a.Get(ctx, vm) })
}

func (v view) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	return ask(v, func(a *Arbiter) (arbiter.Record, error) { return a.Advance(ctx, next) })
}

func (v view) Forget(ctx context.Context, vm string, g uint64) error {
	_, err := ask(v, func(a *Arbiter) (struct{}, error) { return struct{}{}, a.Forget(ctx, vm, g) })
	return err
}

func rec(g uint64, by string, members ...string) arbiter.Record {
	return arbiter.Record{VM: "vm", Generation: g, Members: members, By: by}
}

func (h *hosts) won(node string, next arbiter.Record) {
	h.t.Helper()
	got, err := view{h, node}.Advance(context.Background(), next)
	if err != nil || arbiter.Judge(next, got) != arbiter.Won {
		h.t.Fatalf("%s asks for %v: %v, %v", node, next, got, err)
	}
}

func (h *hosts) holds(node string, next arbiter.Record, want error) {
	h.t.Helper()
	got, err := view{h, node}.Advance(context.Background(), next)
	if !errors.Is(err, arbiter.ErrUnreachable) || want != nil && !errors.Is(err, want) {
		h.t.Fatalf("%s asks for %v: %v, %v; want %v", node, next, got, err, want)
	}
}

func (h *hosts) lost(node string, next arbiter.Record) {
	h.t.Helper()
	got, err := view{h, node}.Advance(context.Background(), next)
	if err != nil || arbiter.Judge(next, got) != arbiter.Lost {
		h.t.Fatalf("%s asks for %v: %v, %v", node, next, got, err)
	}
}

func short(o *Options) { o.Timeout, o.Attempt = 300*time.Millisecond, 100*time.Millisecond }

func protected(t *testing.T, change func(*Options)) *hosts {
	h := newHosts(t, change)
	h.won("a", rec(1, "a", "a"))
	h.won("a", rec(2, "a", "a", "b"))
	return h
}

func TestConformance(t *testing.T) {
	h := newHosts(t, nil)
	arbitertest.Conformance(t, func(n string) arbiter.Arbiter { return view{h, n} }, "vm")
}

// TestNoFencingOfALivePeer: unprotect, switchover and lost claims are agreed on.
func TestNoFencingOfALivePeer(t *testing.T) {
	h := protected(t, nil)
	h.won("a", rec(3, "a", "a"))
	h.lost("b", rec(3, "b", "b"))
	h.won("a", rec(4, "a", "a", "b"))
	h.won("a", rec(5, "a", "b"))
	h.lost("a", rec(6, "a", "a"))
	if len(h.fenced) > 0 {
		t.Errorf("fenced: %v", h.fenced)
	}
}

// TestCrossing: both nodes change the record at the same time, the answer to one is lost, and the other one's message arrives only then.
func TestCrossing(t *testing.T) {
	for _, members := range [][]string{{"a", "b"}, nil} {
		h := protected(t, func(o *Options) { o.Timeout = time.Second })
		h.broken = true // no fence device decides it
		sent, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		h.passing = func(from string, m Message) {
			if from == "b" && m.Kind == kindStore {
				once.Do(func() {
					close(sent)
					<-release
				})
			}
		}
		claim := func(node string) arbiter.Record {
			if members == nil {
				return rec(3, node, node)
			}
			return rec(3, node, members...)
		}
		var got arbiter.Record
		var err error
		var b sync.WaitGroup
		b.Go(func() { got, err = view{h, "b"}.Advance(t.Context(), claim("b")) })
		<-sent
		h.mu.Lock()
		h.replies = true
		h.mu.Unlock()
		h.holds("a", claim("a"), nil)
		h.mu.Lock()
		h.replies = false
		h.mu.Unlock()
		close(release)
		b.Wait()
		if err != nil || !got.Equal(claim("a")) { // it was the first that both knew
			t.Errorf("b's claim: %v, %v", got, err)
		}
		for _, node := range []string{"a", "b"} {
			if got, err := (view{h, node}).Get(t.Context(), "vm"); err != nil || !got.Equal(claim("a")) {
				t.Errorf("%s has %v, %v", node, got, err)
			}
		}
	}
}

func TestFailoverByFencing(t *testing.T) {
	h := protected(t, short)
	h.off("b")
	h.won("a", rec(3, "a", "a"))
	if h.fenced["b"] != 1 {
		t.Errorf("fenced: %v", h.fenced)
	}
	// a goes on alone and dies; b comes back first. It must not go on with what it has.
	h.off("a")
	h.boot("b")
	h.holds("b", rec(3, "b", "b"), ErrStale)
	h.boot("a")
	h.lost("b", rec(3, "b", "b"))
	h.won("a", rec(4, "a", "a", "b"))
	h.off("a")
	h.won("b", rec(5, "b", "b"))
}

func TestColdStart(t *testing.T) {
	h := protected(t, short)
	h.off("a")
	h.off("b")
	h.boot("a")
	h.holds("a", rec(3, "a", "a"), ErrStale)
	if h.fenced["b"] > 0 {
		t.Error("b was fenced by a node that can prove nothing")
	}
	h.boot("b")
	h.won("b", rec(3, "b", "b"))
	// A sole member needs nobody, also after a restart.
	h.off("a")
	h.off("b")
	h.boot("b")
	h.won("b", rec(4, "b", "b"))
}

func TestHolds(t *testing.T) {
	t.Run("the device is broken", func(t *testing.T) {
		h := protected(t, short)
		h.broken = true
		h.off("b")
		h.holds("a", rec(3, "a", "a"), ErrAgent)
		h.broken = false
		h.won("a", rec(3, "a", "a"))
	})
	t.Run("there is none", func(t *testing.T) {
		h := protected(t, func(o *Options) { short(o); o.Fencers = nil })
		h.off("b")
		h.holds("a", rec(3, "a", "a"), nil)
	})
	t.Run("no consent", func(t *testing.T) {
		h := protected(t, func(o *Options) {
			short(o)
			o.Consent = func(context.Context, arbiter.Record) error { return errors.New("my copy still speaks") }
		})
		h.holds("a", rec(3, "a", "a"), nil)
		if len(h.fenced) > 0 {
			t.Errorf("fenced: %v", h.fenced)
		}
	})
	t.Run("a switchover's answer was lost", func(t *testing.T) {
		h := protected(t, short)
		h.mu.Lock()
		h.replies = true
		h.mu.Unlock()
		h.holds("a", rec(3, "a", "b"), nil)
		h.mu.Lock()
		h.replies, h.linkCut = false, true
		h.mu.Unlock()
		h.restart("a")
		h.holds("a", rec(3, "a", "a"), nil) // b may run it now
		if len(h.fenced) > 0 {
			t.Errorf("fenced: %v", h.fenced)
		}
		h.mu.Lock()
		h.linkCut = false
		h.mu.Unlock()
		h.lost("a", rec(3, "a", "a"))
	})
	t.Run("an admission's answer was lost", func(t *testing.T) {
		h := newHosts(t, short)
		h.won("a", rec(1, "a", "a"))
		h.mu.Lock()
		h.replies = true
		h.mu.Unlock()
		h.holds("a", rec(2, "a", "a", "b"), nil)
		h.mu.Lock()
		h.replies, h.linkCut, h.broken = false, true, true
		h.mu.Unlock()
		if got, err := (view{h, "a"}).Get(t.Context(), "vm"); err != nil || !got.Has("b") {
			t.Errorf("a forgot that b may be in: %v, %v", got, err)
		}
		h.holds("a", rec(3, "a", "a"), ErrAgent)
	})
}

type slow struct {
	Fencer
	took time.Duration
	runs chan struct{}
}

func (s slow) Fence(ctx context.Context) error {
	s.runs <- struct{}{}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.took):
	}
	return s.Fencer.Fence(ctx)
}

// TestSlowDevice: a fencing takes longer than any caller waits, and is done once.
func TestSlowDevice(t *testing.T) {
	runs := make(chan struct{}, 10)
	h := protected(t, func(o *Options) {
		short(o)
		o.Fencers = []Fencer{slow{o.Fencers[0], time.Second, runs}}
	})
	h.off("b")
	asked := 0
	for {
		asked++
		got, err := view{h, "a"}.Advance(t.Context(), rec(3, "a", "a"))
		if err == nil {
			if !got.Equal(rec(3, "a", "a")) {
				t.Fatal(got)
			}
			break
		}
		if !errors.Is(err, ErrFencing) {
			t.Fatal(err)
		}
	}
	if asked < 3 || len(runs) != 1 {
		t.Errorf("asked %d times, fenced %d times", asked, len(runs))
	}
}

// TestDelay: both live and only the link is cut. The node with the delay is the one that goes.
func TestDelay(t *testing.T) {
	h := protected(t, func(o *Options) {
		o.Attempt = 100 * time.Millisecond
		if o.Node == "b" {
			o.Delay = time.Second
		}
	})
	h.linkCut = true
	var both sync.WaitGroup
	results := map[string]error{}
	var mu sync.Mutex
	for _, n := range []string{"a", "b"} {
		both.Go(func() {
			got, err := view{h, n}.Advance(t.Context(), rec(3, n, n))
			if err == nil && arbiter.Judge(rec(3, n, n), got) != arbiter.Won {
				err = fmt.Errorf("lost with %v", got)
			}
			mu.Lock()
			defer mu.Unlock()
			results[n] = err
		})
	}
	both.Wait()
	if results["a"] != nil || results["b"] == nil || h.fenced["a"] != 0 || h.fenced["b"] != 1 {
		t.Errorf("%v, fenced %v", results, h.fenced)
	}
	// The link comes back during the delay: nobody is fenced.
	h = protected(t, func(o *Options) { o.Delay = 300 * time.Millisecond })
	h.linkCut = true
	time.AfterFunc(100*time.Millisecond, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.linkCut = false
	})
	h.won("b", rec(3, "b", "b"))
	if len(h.fenced) != 0 {
		t.Errorf("fenced: %v", h.fenced)
	}
}

func seeds(t *testing.T, n uint64) uint64 {
	t.Helper()
	if s := os.Getenv("COLOCTL_SEEDS"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestLinearizable: links are cut, answers lost, devices broken, hosts powered off and on, daemons restarted, and both nodes claim all the time.
func TestLinearizable(t *testing.T) {
	fenced := 0
	for seed := range seeds(t, 40) {
		h := newHosts(t, func(o *Options) { o.Timeout, o.Attempt = 100*time.Millisecond, 30*time.Millisecond })
		run := arbitertest.Run{View: func(n string) arbiter.Arbiter { return view{h, n} }, Nodes: []string{"a", "b"}, Seed: seed, Calls: 25, CallTimeout: time.Second}
		run.Between = func(r *rand.Rand) {
			node := []string{"a", "b"}[r.IntN(2)]
			switch r.IntN(12) {
			case 0:
				h.off(node)
			case 1, 2, 3:
				h.boot(node)
			case 4:
				h.restart(node)
			case 5:
				h.mu.Lock()
				h.linkCut = true
				h.mu.Unlock()
			case 6:
				h.mu.Lock()
				h.replies, h.broken = r.IntN(2) == 0, r.IntN(2) == 0
				h.mu.Unlock()
			default:
				h.mu.Lock()
				h.linkCut, h.replies, h.broken = false, false, false
				h.mu.Unlock()
			}
		}
		if err := run.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range h.fenced {
			fenced += n
		}
	}
	t.Logf("%d fencings", fenced)
	if fenced < 3 {
		t.Errorf("%d fencings only: the test is none", fenced)
	}
}

func TestReceiveRefuses(t *testing.T) {
	h := protected(t, nil)
	b := h.node("b")
	next := rec(3, "b", "b")
	for what, c := range map[string]struct {
		from string
		m    Message
	}{
		"a stranger":               {"c", Message{Kind: kindCompare, VM: "vm"}},
		"a claim for this node":    {"a", Message{Kind: kindStore, VM: "vm", Next: &next}},
		"nothing to store":         {"a", Message{Kind: kindStore, VM: "vm"}},
		"a record of another VM":   {"a", Message{Kind: kindCompare, VM: "other", Have: &next}},
		"a member that is unknown": {"a", Message{Kind: kindStore, VM: "vm", Next: &arbiter.Record{VM: "vm", Generation: 3, Members: []string{"x"}, By: "a"}}},
	} {
		c.m.Session, c.m.Seq = 1<<62, 1
		if r, err := b.Receive(t.Context(), c.from, c.m); !errors.Is(err, arbiter.ErrInvalid) {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	if r, err := b.Receive(t.Context(), "a", Message{Kind: kindCompare, VM: "vm", Session: 1, Seq: 1}); err != nil || r.Refused == "" {
		t.Errorf("a message from before: %+v, %v", r, err)
	}
	if got, err := b.Get(t.Context(), "vm"); err != nil || !got.Equal(rec(2, "a", "a", "b")) {
		t.Errorf("%v, %v", got, err)
	}
}

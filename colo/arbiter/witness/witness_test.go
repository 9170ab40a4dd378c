package witness

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a witness with its authority. It can be stopped and started; its address stays.
type site struct {
	t    *testing.T
	ca   string
	path string
	cred *pki.Credentials
	addr string

	mu    sync.Mutex
	store *Store
	end   func()
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, ca: filepath.Join(dir, "ca"), path: filepath.Join(dir, "witness.db")}
	if err := pki.InitCA(s.ca, pki.AuthorityOptions{}); err != nil {
		t.Fatal(err)
	}
	s.cred = s.credentials(pki.Witness, "w1")
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) credentials(role pki.Role, name string) *pki.Credentials {
	s.t.Helper()
	out := s.t.TempDir()
	path, err := pki.Issue(s.ca, pki.IssueOptions{Identity: pki.Identity{Role: role, Name: name}, Out: out})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := pki.Load(pki.Files{Identity: path, Trust: filepath.Join(out, pki.TrustFile)})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	store, err := Open(s.path)
	if err != nil {
		s.t.Error(err)
		return
	}
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Error(err, store.Close())
		return
	}
	s.addr = ln.Addr().String()
	srv, err := NewServer(ServerOptions{Store: store, Version: "1.2.3", Host: "witness host", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		s.t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, ln, s.cred) }()
	s.store = store
	s.end = func() {
		cancel()
		if err := errors.Join(<-ended, store.Close()); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *site) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		s.end()
		s.end = nil
	}
}

func (s *site) client(role pki.Role, name string, change func(*ClientOptions)) *Client {
	s.t.Helper()
	o := ClientOptions{Name: "w1", Address: s.addr, Credentials: s.credentials(role, name), Host: "host of " + name}
	if change != nil {
		change(&o)
	}
	c, err := NewClient(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// views makes one client for each node.
func (s *site) views(change func(*ClientOptions), nodes ...string) func(node string) arbiter.Arbiter {
	all := map[string]arbiter.Arbiter{}
	for _, n := range nodes {
		all[n] = s.client(pki.Node, n, change)
	}
	return func(node string) arbiter.Arbiter { return all[node] }
}

func TestConformance(t *testing.T) {
	s := newSite(t)
	arbitertest.Conformance(t, s.views(nil, "a", "b"), "a VM/with a name that must be escaped?")
}

func TestLinearizable(t *testing.T) {
	s := newSite(t)
	nodes := []string{"a", "b", "c"}
	view := s.views(nil, nodes...)
	for seed := range uint64(3) {
		run := arbitertest.Run{View: view, Nodes: nodes, Seed: seed, VM: "calm" + string(rune('a'+seed)), CallTimeout: 5 * time.Second}
		if err := run.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLinearizableUnderFaults breaks connections in all places, and restarts the witness, while nodes claim.
func TestLinearizableUnderFaults(t *testing.T) {
	s := newSite(t)
	nodes := []string{"a", "b", "c"}
	var breaker breaker
	view := s.views(func(o *ClientOptions) {
		o.Attempt, o.Dial = 50*time.Millisecond, breaker.dial
	}, nodes...)
	for seed := uint64(0); seed < 3 || seed < 20 && breaker.lost.Load() < 10; seed++ { // a slow machine breaks fewer in a run
		breaker.mend()
		run := arbitertest.Run{View: view, Nodes: nodes, Seed: seed, Calls: 20, VM: "vm" + string(rune('a'+seed)), CallTimeout: 200 * time.Millisecond}
		run.Between = func(r *rand.Rand) {
			switch r.IntN(8) {
			case 0:
				breaker.setLoss(r.IntN(3))
			case 1:
				breaker.cut()
			case 2:
				if r.IntN(4) == 0 {
					s.stop()
					s.start()
				}
			default:
				breaker.setLoss(0)
			}
		}
		if err := run.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := breaker.lost.Load(); n < 10 {
		t.Errorf("only %d faults happened: the test is none", n)
	}
}

func TestErrorsAreUnreachable(t *testing.T) {
	s := newSite(t)
	next := arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a"}, By: "a"}
	quick := func(o *ClientOptions) { o.Timeout, o.Attempt = 300*time.Millisecond, 100*time.Millisecond }
	want := func(what string, c *Client, err error) {
		t.Helper()
		began := time.Now()
		if _, got := c.Advance(t.Context(), next); !errors.Is(got, err) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", what, got, time.Since(began))
		}
	}
	impostor := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"record":{"vm":"vm","generation":1,"members":["a"],"by":"a"},"instance":"x"}`)
	}))
	impostor.TLS = s.cred.Server()
	impostor.StartTLS()
	t.Cleanup(impostor.Close)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	other := newSite(t)

	want("something that speaks HTTP and is no witness", s.client(pki.Node, "a", func(o *ClientOptions) { quick(o); o.Address = impostor.Listener.Addr().String() }), arbiter.ErrUnreachable)
	want("something that never answers", s.client(pki.Node, "a", func(o *ClientOptions) { quick(o); o.Address = mute.Addr().String() }), arbiter.ErrUnreachable)
	want("another authority's witness", s.client(pki.Node, "a", func(o *ClientOptions) { o.Address = other.addr }), arbiter.ErrUnreachable)
	want("a witness of another name", s.client(pki.Node, "a", func(o *ClientOptions) { o.Name = "w2" }), arbiter.ErrUnreachable)
	want("the witness's own host", s.client(pki.Node, "a", func(o *ClientOptions) { o.Host = "witness host" }), ErrSameHost)
	s.stop()
	want("a stopped witness", s.client(pki.Node, "a", quick), arbiter.ErrUnreachable)
	s.start()
	if _, err := s.client(pki.Node, "a", nil).Get(t.Context(), "vm"); !errors.Is(err, arbiter.ErrNoRecord) {
		t.Errorf("one of these calls was carried out: %v", err)
	}
}

func TestWhoMay(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	a := s.client(pki.Node, "a", nil)
	next := arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a", "b"}, By: "a"}
	if _, err := a.Advance(ctx, next); err != nil {
		t.Fatal(err)
	}
	forged := next
	forged.Generation, forged.By = 2, "b"
	if _, err := a.Advance(ctx, forged); !errors.Is(err, arbiter.ErrInvalid) {
		t.Errorf("a claim for b by a: %v", err)
	}
	if _, err := a.once(ctx, "vm", request{Op: opAdvance, Next: &forged}); !errors.Is(err, arbiter.ErrInvalid) {
		t.Errorf("a claim for b by a, past the client's own check: %v", err)
	}
	if _, err := a.once(ctx, "other", request{Op: opAdvance, Next: &next}); !errors.Is(err, arbiter.ErrInvalid) {
		t.Errorf("a record under another name: %v", err)
	}
	if _, err := a.once(ctx, "vm", request{Op: "explode"}); !errors.Is(err, arbiter.ErrInvalid) {
		t.Errorf("an unknown operation: %v", err)
	}
	if err := a.Drop(ctx, "vm", 1); !errors.Is(err, ErrForbidden) {
		t.Errorf("drop by a node: %v", err)
	}
	for _, role := range []pki.Role{pki.Viewer, pki.Operator, pki.Admin} {
		p := s.client(role, "a", nil)
		if got, err := p.Get(ctx, "vm"); err != nil || !got.Equal(next) {
			t.Errorf("get by a %s: %v, %v", role, got, err)
		}
		if recs, err := p.Records(ctx); err != nil || len(recs) != 1 || !recs[0].Equal(next) {
			t.Errorf("list by a %s: %v, %v", role, recs, err)
		}
		second := next
		second.Generation = 2
		if _, err := p.Advance(ctx, second); !errors.Is(err, ErrForbidden) {
			t.Errorf("claim by a %s: %v", role, err)
		}
		if err := p.Forget(ctx, "vm", 1); !errors.Is(err, ErrForbidden) {
			t.Errorf("forget by a %s: %v", role, err)
		}
		if err := p.Drop(ctx, "vm", 1); (role == pki.Admin) != (err == nil) {
			t.Errorf("drop by a %s: %v", role, err)
		}
	}
	// Persons may work on the witness's host.
	if _, err := s.client(pki.Viewer, "val", func(o *ClientOptions) { o.Host = "witness host" }).Records(ctx); err != nil {
		t.Errorf("viewer on the witness's host: %v", err)
	}
	if _, err := s.client(pki.Node, "a", func(o *ClientOptions) { o.Host = "witness host" }).Health(ctx); !errors.Is(err, ErrSameHost) {
		t.Errorf("health on the witness's host: %v", err)
	}
}

// TestLostFile: a witness that starts without its file must not let anybody go on, and can be told from the old one.
func TestLostFile(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	a := s.client(pki.Node, "a", nil)
	before, err := a.Health(ctx)
	if err != nil || before.Version != "1.2.3" || before.Instance != s.store.Instance() {
		t.Fatalf("%+v, %v", before, err)
	}
	for g := range uint64(3) {
		if _, err := a.Advance(ctx, arbiter.Record{VM: "vm", Generation: g + 1, Members: []string{"a"}, By: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	s.start()
	if got, err := a.Get(ctx, "vm"); err != nil || got.Generation != 3 {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	s.stop()
	s.path += ".new"
	s.start()
	if _, err := a.Advance(ctx, arbiter.Record{VM: "vm", Generation: 4, Members: []string{"a"}, By: "a"}); !errors.Is(err, arbiter.ErrNoRecord) {
		t.Errorf("a claim at an empty witness: %v", err)
	}
	if after, err := a.Health(ctx); err != nil || after.Instance == before.Instance {
		t.Errorf("%+v, %v", after, err)
	}
}

func TestHostID(t *testing.T) {
	a, err := HostID()
	b, err2 := HostID()
	if err != nil || err2 != nil || a != b || len(a) != 32 || strings.Contains(a, "-") {
		t.Errorf("%q %q %v %v", a, b, err, err2)
	}
}

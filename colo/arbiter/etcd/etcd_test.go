package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func isUnreachable(err error) bool { return errors.Is(err, arbiter.ErrUnreachable) }

func open(t *testing.T, o Options) *Arbiter {
	t.Helper()
	a, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func views(t *testing.T, endpoints []string, nodes ...string) func(string) arbiter.Arbiter {
	t.Helper()
	all := map[string]arbiter.Arbiter{}
	for _, n := range nodes {
		a := open(t, Options{Node: n, Endpoints: endpoints})
		ready(t, a)
		all[n] = a
	}
	return func(n string) arbiter.Arbiter { return all[n] }
}

func TestOneServer(t *testing.T) {
	members := startCluster(t, 1, "http")
	nodes := []string{"a", "b", "c"}
	view := views(t, urls(members), nodes...)
	t.Run("conformance", func(t *testing.T) { arbitertest.Conformance(t, view, "vm/with a path") })
	t.Run("linearizable", func(t *testing.T) {
		for seed := range uint64(2) {
			run := arbitertest.Run{View: view, Nodes: nodes, Seed: seed, VM: string(rune('a' + seed)), CallTimeout: 10 * time.Second}
			if err := run.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		a := open(t, Options{Node: "a", Endpoints: urls(members)})
		id, err := a.ClusterID(t.Context())
		if err != nil || id == 0 {
			t.Fatal(id, err)
		}
		if _, err := open(t, Options{Node: "a", Endpoints: urls(members), ClusterID: id}).Get(t.Context(), "vm"); !errors.Is(err, arbiter.ErrNoRecord) {
			t.Errorf("the right cluster: %v", err)
		}
		other := open(t, Options{Node: "a", Endpoints: urls(members), ClusterID: id + 1})
		if _, err := other.Get(t.Context(), "vm"); !errors.Is(err, ErrOtherCluster) {
			t.Errorf("the wrong cluster: %v", err)
		}
		rec := arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a"}, By: "a"}
		if _, err := other.Advance(t.Context(), rec); !errors.Is(err, ErrOtherCluster) {
			t.Errorf("a claim at the wrong cluster: %v", err)
		}
	})
	t.Run("foreign values", func(t *testing.T) {
		cl := client(t, clientv3.Config{Endpoints: urls(members)})
		a := open(t, Options{Node: "a", Endpoints: urls(members), Prefix: "/x"})
		for _, v := range []string{"", "hello", `{"vm":"other","generation":1,"members":["a"],"by":"a"}`, `{"vm":"vm"}`} {
			if _, err := cl.Put(t.Context(), "/x/vm", v); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Get(t.Context(), "vm"); !errors.Is(err, ErrDamaged) || errors.Is(err, arbiter.ErrInvalid) {
				t.Errorf("%q: %v", v, err)
			}
			if _, err := a.Advance(t.Context(), arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a"}, By: "a"}); !errors.Is(err, ErrDamaged) {
				t.Errorf("claim over %q: %v", v, err)
			}
		}
	})
	t.Run("restarts and stops", func(t *testing.T) {
		m := members[0]
		for seed := range uint64(1) {
			var mu sync.Mutex
			run := arbitertest.Run{View: view, Nodes: nodes, Seed: seed, Calls: 20, VM: "s" + string(rune('a'+seed)), CallTimeout: 1500 * time.Millisecond}
			run.Between = func(r *rand.Rand) {
				mu.Lock()
				defer mu.Unlock()
				switch r.IntN(12) {
				case 0:
					m.kill()
					m.start()
				case 1:
					m.signal(syscall.SIGSTOP)
					time.Sleep(100 * time.Millisecond) // a stop of this length is the fault itself
					m.signal(syscall.SIGCONT)
				}
			}
			if err := run.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestCluster: one of three members may stop at any moment, silently too; without a majority nobody wins.
func TestCluster(t *testing.T) {
	members := startCluster(t, 3, "http")
	a := open(t, Options{Node: "a", Endpoints: urls(members), Timeout: 20 * time.Second})
	ready(t, a)
	rec := arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a"}, By: "a"}
	advance := func(what string, ctx context.Context) {
		t.Helper()
		if got, err := a.Advance(ctx, rec); err != nil || !got.Equal(rec) {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
		rec.Generation++
	}
	advance("all three", t.Context())
	for _, m := range members {
		m.signal(syscall.SIGSTOP)
		advance(m.name+" is silent", t.Context())
		m.signal(syscall.SIGCONT)
	}
	members[0].kill()
	advance("two of three", t.Context())
	members[1].kill()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := a.Advance(ctx, rec); !isUnreachable(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one of three: %v", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	members[0].start()
	advance("two again, asked the same", t.Context())
}

func TestTLSAndUsers(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, pki.AuthorityOptions{}); err != nil {
		t.Fatal(err)
	}
	issue := func(name string) string {
		path, err := pki.Issue(ca, pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: name}, Hosts: []string{"127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	server, own := issue("etcd"), issue("a")
	trust := filepath.Join(ca, pki.TrustFile)
	members := startCluster(t, 1, "https", "--cert-file", server, "--key-file", server, "--trusted-ca-file", trust, "--client-cert-auth")
	pair, err := tls.LoadX509KeyPair(own, own)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(trust)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}}

	ready(t, open(t, Options{Node: "a", Endpoints: urls(members), TLS: conf}))
	short := 2 * time.Second
	for what, c := range map[string]*tls.Config{
		"no certificate":    {MinVersion: tls.VersionTLS12, RootCAs: pool},
		"unknown authority": {MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}},
	} {
		if _, err := open(t, Options{Node: "a", Endpoints: urls(members), TLS: c, Timeout: short}).Get(t.Context(), "vm"); !isUnreachable(err) {
			t.Errorf("%s: %v", what, err)
		}
	}

	cl := client(t, clientv3.Config{Endpoints: urls(members), TLS: conf})
	ctx := t.Context()
	for _, do := range []func() error{
		func() error { _, err := cl.RoleAdd(ctx, "coloctl"); return err },
		func() error {
			_, err := cl.RoleGrantPermission(ctx, "coloctl", DefaultPrefix, clientv3.GetPrefixRangeEnd(DefaultPrefix), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := cl.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := cl.UserAdd(ctx, "nodes", "secret"); return err },
		func() error { _, err := cl.UserAdd(ctx, "other", "secret"); return err },
		func() error { _, err := cl.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := cl.UserGrantRole(ctx, "nodes", "coloctl"); return err },
		func() error { _, err := cl.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	user := func(name, password string) Options {
		return Options{Node: "a", Endpoints: urls(members), TLS: conf, Username: name, Password: password, Timeout: short, DialTimeout: 10 * time.Second}
	}
	arbitertest.Conformance(t, func(node string) arbiter.Arbiter {
		o := user("nodes", "secret")
		o.Node, o.Timeout = node, 10*time.Second
		return open(t, o)
	}, "vm")
	if _, err := New(ctx, user("nodes", "wrong")); !isUnreachable(err) {
		t.Errorf("wrong password: %v", err)
	}
	other := open(t, user("other", "secret"))
	began := time.Now()
	if _, err := other.Get(ctx, "vm"); !isUnreachable(err) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a user without the role: %v", err)
	}
	if took := time.Since(began); took > short {
		t.Errorf("a refusal took %v: it was asked again and again", took)
	}
	plain := user("nodes", "secret")
	plain.TLS, plain.Endpoints = nil, []string{"http://" + members[0].clientAddr}
	if _, err := New(ctx, plain); err == nil || isUnreachable(err) {
		t.Errorf("password over plain HTTP: %v", err)
	}
}

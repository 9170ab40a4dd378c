package pki_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/colo/api/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	t  *testing.T
	ca string
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{t: t, ca: filepath.Join(t.TempDir(), "ca")}
	w.ok(pki.InitCA(w.ca, pki.AuthorityOptions{}))
	return w
}

func (w world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// issue makes an identity in a folder of its own and returns its files.
func (w world) issue(o pki.IssueOptions) pki.Files {
	w.t.Helper()
	if o.Out == "" {
		o.Out = filepath.Join(w.t.TempDir(), o.Name)
	}
	path, err := pki.Issue(w.ca, o)
	w.ok(err)
	return pki.Files{Identity: path, Trust: filepath.Join(filepath.Dir(path), pki.TrustFile)}
}

func (w world) load(f pki.Files) *pki.Credentials {
	w.t.Helper()
	c, err := pki.Load(f)
	w.ok(err)
	return c
}

func (w world) credentials(role pki.Role, name string) *pki.Credentials {
	w.t.Helper()
	return w.load(w.issue(pki.IssueOptions{Identity: pki.Identity{Role: role, Name: name}}))
}

// serve answers with the caller's identity.
func serve(t *testing.T, conf *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := pki.Caller(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, id.String())
	}))
	s.Config.ErrorLog = nil
	s.TLS = conf
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func ask(c *pki.Credentials, server pki.Identity, addr string) (string, error) {
	tr := &http.Transport{DialTLSContext: c.Dialer(server, nil)}
	defer tr.CloseIdleConnections()
	cl := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	resp, err := cl.Get("https://" + addr + "/")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestWhoMaySpeakToWhom(t *testing.T) {
	w := newWorld(t)
	alpha := pki.Identity{Role: pki.Node, Name: "alpha"}
	server := w.credentials(pki.Node, "alpha")
	addr := serve(t, server.Server(pki.Node, pki.Admin))
	all := serve(t, server.Server())

	other := newWorld(t)
	for _, c := range []struct {
		what   string
		client *pki.Credentials
		want   pki.Identity
		addr   string
		answer string // empty: refused
	}{
		{"a node", w.credentials(pki.Node, "beta"), alpha, addr, "node beta"},
		{"an admin", w.credentials(pki.Admin, "ann"), alpha, addr, "admin ann"},
		{"a viewer where only nodes and admins may", w.credentials(pki.Viewer, "val"), alpha, addr, ""},
		{"a viewer where all may", w.credentials(pki.Viewer, "val"), alpha, all, "viewer val"},
		{"a witness, which is nobody's client", w.credentials(pki.Witness, "wit"), alpha, all, ""},
		{"the server is another node", w.credentials(pki.Node, "beta"), pki.Identity{Role: pki.Node, Name: "gamma"}, addr, ""},
		{"the server is no witness", w.credentials(pki.Node, "beta"), pki.Identity{Role: pki.Witness, Name: "alpha"}, addr, ""},
		{"somebody else's authority", other.credentials(pki.Node, "beta"), alpha, addr, ""},
	} {
		got, err := ask(c.client, c.want, c.addr)
		if c.answer == "" && err == nil || c.answer != "" && (err != nil || got != c.answer) {
			t.Errorf("%s: %q, %v; want %q", c.what, got, err, c.answer)
		}
	}
	if conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
	// TLS 1.3 tells a client without certificate only when it reads.
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without certificate: %v", err)
	}
}

// TestRotationWithoutStop goes through the documented order with a server and a client that run all the time, and asks after each step.
func TestRotationWithoutStop(t *testing.T) {
	w := newWorld(t)
	id := pki.Identity{Role: pki.Node, Name: "alpha"}
	sf := w.issue(pki.IssueOptions{Identity: id})
	cf := w.issue(pki.IssueOptions{Identity: pki.Identity{Role: pki.Operator, Name: "olga"}})
	old := w.load(w.issue(pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "forgotten"}}))
	server, client := w.load(sf), w.load(cf)
	addr := serve(t, server.Server())
	step := func(what string) {
		t.Helper()
		if got, err := ask(client, id, addr); err != nil || got != "operator olga" {
			t.Fatalf("after %s: %q, %v", what, got, err)
		}
		for _, c := range []*pki.Credentials{server, client} {
			if err := c.Err(); err != nil {
				t.Fatalf("after %s: %v", what, err)
			}
		}
	}
	spread := func(to pki.Files) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(w.ca, pki.TrustFile))
		w.ok(err)
		w.ok(os.WriteFile(to.Trust+".new", raw, 0o644))
		w.ok(os.Rename(to.Trust+".new", to.Trust))
	}
	renew := func(f pki.Files, id pki.Identity) {
		t.Helper()
		_, err := pki.Issue(w.ca, pki.IssueOptions{Identity: id, Out: filepath.Dir(f.Identity), Renew: true})
		w.ok(err)
	}
	step("the beginning")
	w.ok(pki.Rotate(w.ca, pki.AuthorityOptions{}))
	step("rotate")
	if err := pki.Rotate(w.ca, pki.AuthorityOptions{}); !errors.Is(err, pki.ErrRotating) {
		t.Errorf("rotate while rotating: %v", err)
	}
	spread(sf)
	step("new trust at the server")
	spread(cf)
	step("new trust at the client")
	renew(sf, id)
	step("a new certificate for the server")
	renew(cf, client.Identity())
	step("a new certificate for the client")
	if _, err := ask(old, id, addr); err == nil {
		t.Error("who never heard of the new authority trusts the server's new certificate")
	}
	w.ok(pki.Retire(w.ca))
	spread(sf)
	step("trust withdrawn at the server")
	spread(cf)
	step("trust withdrawn at the client")
	fresh := w.load(w.issue(pki.IssueOptions{Identity: pki.Identity{Role: pki.Viewer, Name: "new"}}))
	if got, err := ask(fresh, id, addr); err != nil || got != "viewer new" {
		t.Errorf("newcomer: %q, %v", got, err)
	}
	w.ok(pki.Rotate(w.ca, pki.AuthorityOptions{}))
}

func TestBadFilesAreNotTakenUp(t *testing.T) {
	w := newWorld(t)
	id := pki.Identity{Role: pki.Node, Name: "alpha"}
	f := w.issue(pki.IssueOptions{Identity: id})
	c := w.load(f)
	addr := serve(t, c.Server())
	good, err := os.ReadFile(f.Identity)
	w.ok(err)
	check := func(what string, want error) {
		t.Helper()
		if err := c.Err(); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if _, err := pki.Load(f); want != nil && !errors.Is(err, want) && !errors.Is(want, pki.ErrIdentity) {
			t.Errorf("%s: load says %v, want %v", what, err, want)
		}
		if got, err := ask(c, id, addr); err != nil || got != "node alpha" {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	w.ok(os.WriteFile(f.Identity, good[:len(good)/2], 0o600))
	check("half a file", pki.ErrDamaged)
	w.ok(os.WriteFile(f.Identity, good, 0o600))
	check("whole again", nil)
	w.ok(os.Chmod(f.Identity, 0o640))
	check("readable by the group", pki.ErrLooseMode)
	w.ok(os.Chmod(f.Identity, 0o600))
	check("private again", nil)
	foreign := newWorld(t).issue(pki.IssueOptions{Identity: id})
	raw, err := os.ReadFile(foreign.Identity)
	w.ok(err)
	w.ok(os.WriteFile(f.Identity, raw, 0o600))
	check("by another authority", pki.ErrDamaged)
	beta, err := os.ReadFile(w.issue(pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "beta"}}).Identity)
	w.ok(err)
	w.ok(os.WriteFile(f.Identity, beta, 0o600))
	check("another node's", pki.ErrIdentity)
	w.ok(os.Remove(f.Identity))
	check("gone", os.ErrNotExist)
	w.ok(os.WriteFile(f.Identity, good, 0o600))
	w.ok(os.WriteFile(f.Trust, []byte("nonsense"), 0o644))
	check("nonsense as trust", pki.ErrDamaged)
}

func TestExpired(t *testing.T) {
	w := newWorld(t)
	server := w.credentials(pki.Node, "alpha")
	addr := serve(t, server.Server())
	f := w.issue(pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "late"}, Life: time.Nanosecond})
	c := w.load(f) // it starts, and says so
	if err := c.Err(); !errors.Is(err, pki.ErrExpired) {
		t.Errorf("state: %v", err)
	}
	if _, err := ask(c, server.Identity(), addr); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("accepted: %v", err)
	}
	if server.Err() != nil || !server.NotAfter().After(time.Now().Add(700*24*time.Hour)) {
		t.Errorf("default life ends %v, %v", server.NotAfter(), server.Err())
	}
}

func TestFilesAreKept(t *testing.T) {
	w := newWorld(t)
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	before := snapshot(t, w.ca)
	is("a second authority", pki.InitCA(w.ca, pki.AuthorityOptions{}), pki.ErrExists)
	out := t.TempDir()
	alpha := pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "alpha"}, Out: out, Hosts: []string{"alpha.example", "192.0.2.1", "fe80::1"}}
	path, err := pki.Issue(w.ca, alpha)
	w.ok(err)
	issued := snapshot(t, out)
	_, err = pki.Issue(w.ca, alpha)
	is("a second certificate", err, pki.ErrExists)
	viewer := alpha
	viewer.Role, viewer.Renew = pki.Viewer, true
	_, err = pki.Issue(w.ca, viewer)
	is("renewal for another role", err, pki.ErrExists)
	for _, name := range []string{"", "ca", "Alpha", "a b", "../x", "-a", "a.b", strings.Repeat("a", 64)} {
		_, err = pki.Issue(w.ca, pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: name}, Out: out})
		is("name "+name, err, pki.ErrIdentity)
	}
	_, err = pki.Issue(w.ca, pki.IssueOptions{Identity: pki.Identity{Role: "king", Name: "a"}, Out: out})
	is("an unknown role", err, pki.ErrIdentity)
	_, err = pki.Issue(t.TempDir(), alpha)
	is("no authority", err, pki.ErrNoAuthority)
	is("rotation of nothing", pki.Rotate(filepath.Join(out, "nowhere"), pki.AuthorityOptions{}), pki.ErrNoAuthority)
	if got := snapshot(t, w.ca); got != before {
		t.Errorf("the authority's folder changed:\n%s\n%s", before, got)
	}
	if got := snapshot(t, out); got != issued {
		t.Errorf("the node's folder changed:\n%s\n%s", issued, got)
	}
	for file, want := range map[string]os.FileMode{path: 0o600, filepath.Join(w.ca, pki.AuthorityFile): 0o600, filepath.Join(w.ca, pki.TrustFile): 0o644, w.ca: 0o700} {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", file, fi.Mode(), err)
		}
	}
	w.ok(os.Chmod(filepath.Join(w.ca, pki.AuthorityFile), 0o644))
	_, err = pki.Issue(w.ca, pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "beta"}, Out: out})
	is("an authority that all can read", err, pki.ErrLooseMode)
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(e.Name() + "\n" + string(raw))
	}
	return b.String()
}

// TestRenewalUnderUse renews while others load and shake hands: nobody may ever see half of it.
func TestRenewalUnderUse(t *testing.T) {
	w := newWorld(t)
	o := pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: "alpha"}, Out: t.TempDir()}
	f := w.issue(o)
	o.Renew = true
	c := w.load(f)
	ctx, stop := context.WithCancel(t.Context())
	var users sync.WaitGroup
	for range 2 {
		users.Go(func() {
			for ctx.Err() == nil {
				if _, err := pki.Load(f); err != nil {
					t.Error(err)
				}
				if err := handshake(c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for range 20 {
				if _, err := pki.Issue(w.ca, o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	stop()
	users.Wait()
	if got := c.Err(); got != nil {
		t.Error(got)
	}
	entries, err := os.ReadDir(o.Out)
	w.ok(err)
	if len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func handshake(c *pki.Credentials) error {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	done := make(chan error, 1)
	server := tls.Server(a, c.Server())
	go func() { done <- server.Handshake() }()
	err := tls.Client(b, c.Client(c.Identity())).Handshake()
	return errors.Join(err, <-done)
}

func TestRoles(t *testing.T) {
	order := []pki.Role{pki.Viewer, pki.Operator, pki.Admin}
	for i, have := range order {
		for j, need := range order {
			if have.Allows(need) != (i >= j) {
				t.Errorf("%s allows %s: %v", have, need, have.Allows(need))
			}
		}
		for _, machine := range []pki.Role{pki.Node, pki.Witness, ""} {
			if machine.Allows(have) || have.Allows(machine) || machine.Person() {
				t.Errorf("%q and %s are mixed up", machine, have)
			}
		}
	}
}

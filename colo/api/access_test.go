package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo/api/pki"
)

// TestRoles asks each route as everybody. What a caller may not do must be refused before anything else is looked at: the bodies are empty, the VM isn't there.
func TestRoles(t *testing.T) {
	s := newSite(t)
	callers := map[string]*Client{
		"viewer": s.as(pki.Viewer, "eve", "n1"), "operator": s.as(pki.Operator, "bob", "n1"), "admin": s.as(pki.Admin, "alice", "n1"),
		"peer": s.as(pki.Node, "n2", "n1"), "stranger": s.as(pki.Node, "n3", "n1"), "self": s.as(pki.Node, "n1", "n1"), "witness": s.as(pki.Witness, "w1", "n1"),
	}
	rank := map[string]int{"viewer": 1, "operator": 2, "admin": 3}
	for _, rt := range routes {
		path := strings.NewReplacer("{vm}", "nope", "{id}", "x-1").Replace(rt.path)
		for who, c := range callers {
			want := rank[who] > 0 && rank[who] >= rank[string(rt.least)] && rt.least != pki.Node
			if who == "peer" {
				want = rt.least == pki.Node || rt.nodesToo
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			req, err := http.NewRequestWithContext(ctx, rt.method, "https://node"+path, nil)
			must(t, err)
			resp, err := (&http.Client{Transport: c.tr}).Do(req)
			if who == "witness" && err != nil { // its certificate is no client's
				cancel()
				continue
			}
			if err != nil {
				t.Fatalf("%s by %s: %v", rt.String(), who, err)
			}
			got := resp.StatusCode
			cancel() // a stream would go on
			_ = resp.Body.Close()
			if (got != http.StatusForbidden) != want {
				t.Errorf("%s by %s: HTTP %d, allowed should be %v", rt.String(), who, got, want)
			}
		}
	}
	for who, want := range map[string]string{"viewer": "needs the role admin; eve has viewer", "stranger": "n3 is not a peer of n1", "self": "two nodes have the same name"} {
		method, path := "POST", "/v1/peer/drop"
		if who == "viewer" {
			path = "/v1/vms"
		}
		if _, body := raw(t, callers[who], method, path, "", ""); !strings.Contains(body, want) {
			t.Errorf("%s: %s", who, body)
		}
	}
}

// TestWrongCertificates: nobody without a certificate of this authority gets as far as a request, and nobody else's server is believed.
func TestWrongCertificates(t *testing.T) {
	s, other := newSite(t), newSite(t)
	addr := s.hosts["n1"].addr
	client := func(node, at string, c *pki.Credentials) *Client {
		out, err := NewClient(ClientOptions{Node: node, Addresses: []string{at}, Credentials: c})
		must(t, err)
		t.Cleanup(out.Close)
		return out
	}
	short := filepath.Join(s.dir, "short")
	path, err := pki.Issue(s.ca, pki.IssueOptions{Identity: pki.Identity{Role: pki.Admin, Name: "carol"}, Out: short, Life: time.Nanosecond})
	must(t, err)
	expired, err := pki.Load(pki.Files{Identity: path, Trust: filepath.Join(short, pki.TrustFile)})
	must(t, err)
	good := s.credentials(pki.Admin, "alice")
	for name, c := range map[string]*Client{
		"authority of somebody else": client("n1", addr, other.credentials(pki.Admin, "alice")),
		"expired":                    client("n1", addr, expired),
		"another node's server":      client("n2", addr, good),
		"another site's server":      client("n1", other.hosts["n1"].addr, good),
	} {
		if _, err := c.Node(t.Context()); !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		} else if name == "expired" && !errors.Is(err, pki.ErrExpired) { // the server only says that it doesn't like it
			t.Errorf("%s: %v", name, err)
		}
	}
	base := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it is the server that is tested
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: good.Client(pki.Identity{Role: pki.Node, Name: "n1"}).Certificates}
	for name, conf := range map[string]*tls.Config{"no certificate": base, "TLS 1.2": old} {
		resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: 5 * time.Second}).Get("https://" + addr + "/v1/health")
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s was let in: %s", name, resp.Status)
		}
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}).Get("http://" + addr + "/v1/health")
	if err == nil {
		if resp.StatusCode == http.StatusOK {
			t.Error("answered without TLS")
		}
		_ = resp.Body.Close()
	}
}

// TestServeTLSInsists: a server can't be made to serve without certificates by mistake.
func TestServeTLSInsists(t *testing.T) {
	s := newSite(t)
	h := s.hosts["n1"]
	loose := s.credentials(pki.Node, "n1").Server()
	strictOne, err := loose.GetConfigForClient(nil)
	must(t, err)
	strictOne.ClientAuth, strictOne.MinVersion, strictOne.VerifyConnection = tls.NoClientCert, tls.VersionTLS12, nil
	for name, conf := range map[string]*tls.Config{"plain": strictOne, "per client": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return strictOne, nil }, Certificates: strictOne.Certificates}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		done := make(chan error, 1)
		go func() { done <- h.server.ServeTLS(l, conf) }()
		resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}).Get("https://" + l.Addr().String() + "/v1/health")
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: let in without a certificate: %s", name, resp.Status)
		}
		_ = l.Close()
		<-done
	}
}

func TestUnixSocket(t *testing.T) {
	s := newSite(t)
	h := s.hosts["n1"]
	c, err := NewClient(ClientOptions{Socket: h.socket})
	must(t, err)
	defer c.Close()
	validated(t, c)
	n, err := c.Node(t.Context())
	must(t, err)
	if n.You.Role != pki.Admin || n.You.Via != "unix" || n.You.PID != os.Getpid() {
		t.Errorf("the kernel's word: %+v", n.You)
	}
	st, err := os.Stat(h.socket)
	must(t, err)
	if st.Mode().Perm() != 0o660 {
		t.Errorf("socket has mode %v", st.Mode())
	}
	if _, err := ListenUnix(t.Context(), h.socket, -1); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second daemon on the socket: %v", err)
	}
	// One that a killed daemon has left is replaced.
	stale := filepath.Join(s.dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	must(t, err)
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	again, err := ListenUnix(t.Context(), stale, os.Getgid())
	must(t, err)
	must(t, again.Close())
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	gone, err := NewClient(ClientOptions{Socket: stale})
	must(t, err)
	if _, err := gone.Node(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "is colod running") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestOtherLocalUsers runs a client as another user: the socket's group gets an operator's rights and no more.
func TestOtherLocalUsers(t *testing.T) {
	if os.Getenv("COLO_TEST_SOCKET") != "" {
		c, err := NewClient(ClientOptions{Socket: os.Getenv("COLO_TEST_SOCKET")})
		must(t, err)
		n, err := c.Node(t.Context())
		must(t, err)
		_, cerr := c.Create(t.Context(), SpecText{YAML: []byte(webYAML)})
		fmt.Printf("role=%s forbidden=%v\n", n.You.Role, errors.Is(cerr, ErrForbidden))
		c.Close()
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	s := newSite(t)
	must(t, os.Chmod(s.dir, 0o755))
	must(t, os.Chown(s.hosts["n1"].socket, -1, 65534))
	exe := filepath.Join(s.dir, "exe")
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(exe, self, 0o755))
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestOtherLocalUsers$")
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "COLO_TEST_SOCKET="+s.hosts["n1"].socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "role=operator forbidden=true") {
		t.Errorf("%v: %s", err, out)
	}
}

func root() *unix.Ucred { return &unix.Ucred{Pid: 1} }

package api

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/colotest"
	"github.com/coloctl/coloctl/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is one node with its server.
type host struct {
	name     string
	node     *colo.Node
	launcher *colotest.Launcher
	server   *Server
	addr     string
	socket   string
	store    *state.Store
}

// site is two hosts without QEMU that speak to each other through their servers, and an authority.
type site struct {
	t     testing.TB
	ca    string
	dir   string
	mem   *arbiter.Memory
	world *colotest.World
	net   byte
	hosts map[string]*host
}

var nets atomic.Int32

func newSite(t testing.TB) *site {
	dir, err := os.MkdirTemp("", "api") // short: it holds unix sockets
	must(t, err)
	s := &site{t: t, dir: dir, ca: filepath.Join(dir, "ca"), mem: arbiter.NewMemory(), world: colotest.NewWorld(), hosts: map[string]*host{},
		net: byte(os.Getpid()%200 + int(nets.Add(1)))}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, pki.InitCA(s.ca, pki.AuthorityOptions{}))
	for i, name := range []string{"n1", "n2"} {
		s.start(name, byte(i+1))
	}
	for name, other := range map[string]string{"n1": "n2", "n2": "n1"} {
		s.connect(name, other)
	}
	return s
}

func (s *site) start(name string, last byte) *host {
	h := &host{name: name, launcher: colotest.NewLauncher(s.world), socket: filepath.Join(s.dir, name+".sock")}
	var err error
	h.store, err = state.Open(filepath.Join(s.dir, name+".db"), &state.Options{Node: name})
	must(s.t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("COLO_DEBUG") != "" {
		log = slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	h.node, err = colo.NewNode(s.t.Context(), colo.NodeConfig{
		Name: name, RunDir: s.dir, StorageDir: s.dir, Links: []colo.Link{{Name: "link0", Address: netip.AddrFrom4([4]byte{127, 10, s.net, last})}},
		Ports: colo.PortRange{First: 9000, Last: 9100}, Store: h.store, Arbiter: s.mem.View(name), HeartbeatKey: make([]byte, 32), HeartbeatPort: 17788,
		// The machine of the tests is busy: a false loss is not what they are about.
		HeartbeatInterval: 200 * time.Millisecond, HeartbeatTimeout: 5 * time.Second,
		Log: log, Launcher: h.launcher,
	})
	must(s.t, err)
	h.server, err = NewServer(ServerOptions{
		Node: h.node, Version: "test", Arbiter: "memory", Log: log,
		IsPeer: func(n string) bool { return n == "n1" && name == "n2" || n == "n2" && name == "n1" },
		PeerStatus: func(ctx context.Context, vm string) (colo.Status, error) {
			return s.peer(name, map[string]string{"n1": "n2", "n2": "n1"}[name]).PeerStatus(ctx, vm)
		},
	})
	must(s.t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(s.t, err)
	h.addr = tcp.Addr().String()
	local, err := ListenUnix(s.t.Context(), h.socket, -1)
	must(s.t, err)
	done := make(chan error, 2)
	go func() { done <- h.server.ServeTLS(tcp, s.credentials(pki.Node, name).Server()) }()
	go func() { done <- h.server.Serve(local) }()
	s.hosts[name] = h
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.server.Close(ctx); err != nil {
			s.t.Errorf("close of %s's server: %v", name, err)
		}
		for range 2 {
			if err := <-done; err != nil {
				s.t.Errorf("serve of %s: %v", name, err)
			}
		}
		_ = h.node.Close()
		h.server.Wait()
		_ = h.store.Close()
	})
	return h
}

func (s *site) connect(name, other string) {
	must(s.t, s.hosts[name].node.Connect(s.peer(name, other), s.hosts[other].node.Info()))
}

func (s *site) credentials(role pki.Role, name string) *pki.Credentials {
	s.t.Helper()
	out, err := os.MkdirTemp(s.dir, "id")
	must(s.t, err)
	path, err := pki.Issue(s.ca, pki.IssueOptions{Identity: pki.Identity{Role: role, Name: name}, Out: out})
	must(s.t, err)
	c, err := pki.Load(pki.Files{Identity: path, Trust: filepath.Join(out, pki.TrustFile)})
	must(s.t, err)
	return c
}

// peer is the way from one node to another.
func (s *site) peer(from, to string) *Peer {
	p, err := NewPeer(ClientOptions{Node: to, Addresses: []string{s.hosts[to].addr}, Credentials: s.credentials(pki.Node, from)})
	must(s.t, err)
	validated(s.t, p.Client)
	return p
}

// as is a client of a node with a certificate of some role, whose every exchange is held against the document.
func (s *site) as(role pki.Role, name, node string) *Client {
	c, err := NewClient(ClientOptions{Node: node, Addresses: []string{s.hosts[node].addr}, Credentials: s.credentials(role, name)})
	must(s.t, err)
	s.t.Cleanup(c.Close)
	validated(s.t, c)
	return c
}

func (s *site) admin(node string) *Client { return s.as(pki.Admin, "alice", node) }

const webYAML = `name: web
memory: 256MiB
disks:
  - {name: vda, file: web.raw, size: 64MiB}
nics:
  - {name: net0, bridge: br0, mac: "52:54:00:12:34:56"}
`

// create makes the VM web on a node.
func (s *site) create(c *Client) {
	s.t.Helper()
	_, err := c.Create(s.t.Context(), SpecText{YAML: []byte(webYAML), File: "web.yaml"})
	must(s.t, err)
}

// done waits for an operation that must go well.
func done(t testing.TB, c *Client) func(Operation, error) Operation {
	return func(op Operation, err error) Operation {
		t.Helper()
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		op, err = c.Wait(ctx, op.ID, nil)
		if err != nil {
			t.Fatalf("%s: %v", op.Kind, err)
		}
		return op
	}
}

var loaded = sync.OnceValues(func() (*openapi3.T, error) {
	data, err := Document()
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(data)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(context.Background(), openapi3.IsOpenAPI31OrLater())
})

func loadDocument(t testing.TB) (*openapi3.T, routers.Router) {
	t.Helper()
	doc, err := loaded()
	must(t, err)
	router, err := gorillamux.NewRouter(doc)
	must(t, err)
	return doc, router
}

// validated makes a client fail the test when what it sends or gets isn't as the document says.
func validated(t testing.TB, c *Client) {
	_, router := loadDocument(t)
	c.http.Transport = &validator{t, router, c.http.Transport}
}

type validator struct {
	t      testing.TB
	router routers.Router
	next   http.RoundTripper
}

func (v *validator) RoundTrip(r *http.Request) (*http.Response, error) {
	look := r.Clone(r.Context())
	look.URL.Scheme, look.URL.Host, look.Host = "https", "node", "node"
	route, params, err := v.router.FindRoute(look)
	if err != nil {
		v.t.Errorf("%s %s is not in the document: %v", r.Method, r.URL.Path, err)
		return v.next.RoundTrip(r)
	}
	var sent []byte
	if r.Body != nil {
		sent, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(sent))
		look.Body = io.NopCloser(bytes.NewReader(sent))
	}
	opts := &openapi3filter.Options{IncludeResponseStatus: true}
	in := &openapi3filter.RequestValidationInput{Request: look, PathParams: params, Route: route, Options: opts}
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
		v.t.Errorf("%s %s: request: %v", r.Method, r.URL.Path, err)
	}
	resp, err := v.next.RoundTrip(r)
	if err != nil || resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp, err
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(got))
	if err != nil {
		return nil, err
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: opts}
	out.SetBodyBytes(got)
	if err := openapi3filter.ValidateResponse(r.Context(), out); err != nil {
		v.t.Errorf("%s %s: answer %s: %v", r.Method, r.URL.Path, got, err)
	}
	return resp, nil
}

func init() {
	text := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		data, err := io.ReadAll(body)
		return string(data), err
	}
	openapi3filter.RegisterBodyDecoder(mediaYAML, text)
}

// raw sends one request as it is and returns the answer's status and body.
func raw(t testing.TB, c *Client, method, path, contentType, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://node"+path, bytes.NewReader([]byte(body)))
	must(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := (&http.Client{Transport: c.tr}).Do(req)
	must(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(got)
}

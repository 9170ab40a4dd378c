package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
)

// TestBadRequests: each is refused with a message that says what is wrong.
func TestBadRequests(t *testing.T) {
	s := newSite(t)
	c := s.admin("n1")
	s.create(c)
	const js = "application/json"
	for _, x := range []struct {
		method, path, media, body string
		status                    int
		want                      string
	}{
		{"GET", "/v1/nothing", "", "", 404, "no such endpoint: GET /v1/nothing"},
		{"GET", "/v1/vms/web/start", "", "", 405, "it can be used with POST"},
		{"PATCH", "/v1/vms/web", "", "", 405, "GET, DELETE"},
		{"GET", "/v1/vms?page=2", "", "", 400, "page: unknown query parameter: expected none"},
		{"GET", "/v1/vms/web/status?both=yes", "", "", 400, `both: \"yes\": expected true or false`},
		{"GET", "/v1/vms/web/status?both=true&both=false", "", "", 400, "both: is there twice"},
		{"GET", "/v1/history?limit=0", "", "", 400, "limit"},
		{"GET", "/v1/history?since=yesterday", "", "", 400, "expected a time"},
		{"GET", "/v1/history?after=-1", "", "", 400, "after"},
		{"GET", "/v1/events?after=x", "", "", 400, "id of an event"},
		{"GET", "/v1/operations/x-1?wait=3600", "", "", 400, "0 to 120"},
		{"GET", "/v1/vms/nope", "", "", 404, "no such VM"},
		{"GET", "/v1/vms/nope/history", "", "", 404, "no such VM"},
		{"POST", "/v1/vms/nope/start", "", "", 404, "no such VM"},
		{"POST", "/v1/vms/web/start", js, `{"force":true}`, 400, "force: unknown field"},
		{"POST", "/v1/vms/web/start", js, `{"reason":1}`, 400, "reason: expected a string, found number"},
		{"POST", "/v1/vms/web/start", "text/plain", `hello`, 400, "expected application/json"},
		{"POST", "/v1/vms/web/stop", js, `{"timeout":-1}`, 400, "timeout"},
		{"POST", "/v1/vms/web/protect", js, `{"mode":"best"}`, 400, "mode"},
		{"POST", "/v1/vms/web/failover", "", "", 400, "empty"},
		{"POST", "/v1/vms/web/failover", js, `{"force":false,"confirm":"web"}`, 422, "needs force"},
		{"POST", "/v1/vms/web/failover", js, `{"force":true,"confirm":"www"}`, 422, "must be the VM's name"},
		{"POST", "/v1/vms", js, `{"name":"x","memory":1,"disks":[]}`, 422, "whole number of MiB"},
		{"POST", "/v1/vms", "application/yaml", "name: x\nmemory: 1MiB\nmemry: 2\n", 422, "spec:3:1"},
		{"POST", "/v1/vms", "application/xml", "<vm/>", 400, "expected application/json or application/yaml"},
		{"POST", "/v1/vms", js, strings.Repeat(" ", maxBody+1), 413, "over 1048576 bytes"},
	} {
		if status, body := raw(t, c, x.method, x.path, x.media, x.body); status != x.status || !strings.Contains(body, x.want) {
			t.Errorf("%s %s %s: %d %s", x.method, x.path, x.media, status, body)
		}
	}
	node := s.as(pki.Node, "n2", "n1")
	for path, want := range map[string]string{"/v1/peer/prepare": "spec: missing", "/v1/peer/drop": "vm: missing", "/v1/peer/report-dead": "vm: missing"} {
		if status, body := raw(t, node, "POST", path, js, `{}`); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for path, body := range map[string]string{
		"/v1/peer/report-dead": `{"vm":"web","from":"n9","generation":1}`,
		"/v1/peer/prepare":     `{"from":"n9","spec":{"name":"web"}}`,
	} {
		if status, text := raw(t, node, "POST", path, js, body); status != 403 || !strings.Contains(text, `from \"n9\", the certificate of \"n2\"`) {
			t.Errorf("somebody else's name as the sender: %s: %d %s", path, status, text)
		}
	}
}

// TestBusy fills the places for people's requests: nodes still get through.
func TestBusy(t *testing.T) {
	s := newSite(t)
	h := s.hosts["n1"]
	c := s.admin("n1")
	for range maxRequests {
		h.server.busy <- struct{}{}
	}
	if _, err := c.Node(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := s.peer("n2", "n1").Hello(t.Context()); err != nil {
		t.Errorf("a node was turned away: %v", err)
	}
	for range maxRequests {
		<-h.server.busy
	}
	if _, err := c.Node(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPanicIsAnError: a bug in one handler ends one request.
func TestPanicIsAnError(t *testing.T) {
	s := newSite(t)
	rt := route{method: "GET", path: "/boom", least: pki.Viewer, do: func(*Server, http.ResponseWriter, *request) error { panic("boom") }}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/boom", nil)
	r = r.WithContext(context.WithValue(r.Context(), callerKey{}, localCaller{cred: root()}))
	s.hosts["n1"].server.handler(&rt).ServeHTTP(w, r)
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), `"internal"`) || strings.Contains(w.Body.String(), "boom\"") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestCloseEndsWaiting: neither a stream nor a long poll nor a silent connection keeps the server.
func TestCloseEndsWaiting(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c, h := s.admin("n1"), s.hosts["n1"]
	s.create(c)
	done(t, c)(c.Start(ctx, "web", Request{}))
	release := h.launcher.HoldSync()
	defer release()
	op, err := c.Protect(ctx, "web", ResyncRequest{})
	must(t, err)
	polled, streamed := make(chan error, 1), make(chan error, 1)
	started := make(chan struct{}, 64)
	go func() { _, err := c.Operation(ctx, op.ID, time.Minute); polled <- err }()
	go func() {
		streamed <- c.stream(ctx, EventQuery{}, "0", func(StreamEvent) error {
			select {
			case started <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	<-started
	silent, err := net.Dial("tcp", h.addr) // somebody who has connected and says nothing
	must(t, err)
	defer silent.Close()
	begun := time.Now()
	cctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	must(t, h.server.Close(cctx))
	<-polled
	if err := <-streamed; err == nil {
		t.Error("a stream ended without a reason")
	}
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("closing took %s", took)
	}
}

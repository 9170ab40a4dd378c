package api

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
)

// everyCall makes each call of colo.Peer.
func everyCall(ctx context.Context, p colo.Peer) map[string]error {
	out := map[string]error{}
	_, out["Hello"] = p.Hello(ctx)
	_, out["Prepare"] = p.Prepare(ctx, colo.PrepareRequest{From: "n1", ID: "x", Spec: &colo.Spec{Name: "web"}})
	_, out["Sums"] = p.Sums(ctx, colo.SumsRequest{VM: "web", From: "n1", Resync: "r", Disk: "vda", Length: 1 << 20})
	out["Checkpoint"] = p.Checkpoint(ctx, colo.CheckpointRequest{VM: "web", From: "n1"})
	_, out["Inquire"] = p.Inquire(ctx, "web")
	out["Drop"] = p.Drop(ctx, colo.DropRequest{Record: arbiter.Record{VM: "x", Generation: 1}})
	out["Confirm"] = p.Confirm(ctx, arbiter.Record{VM: "x", Generation: 1})
	out["TakeOver"] = p.TakeOver(ctx, arbiter.Record{VM: "x", Generation: 1})
	out["ReportDead"] = p.ReportDead(ctx, colo.Report{VM: "web", From: "n1"})
	out["ReportChannelLost"] = p.ReportChannelLost(ctx, colo.Report{VM: "web", From: "n1"})
	return out
}

// TestPeerErrors: the engine's errors keep their identity.
func TestPeerErrors(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	p := s.peer("n1", "n2")
	info, err := p.Hello(ctx)
	if err != nil || info.Name != "n2" || len(info.Links) != 1 || !info.Links[0].Address.IsValid() {
		t.Errorf("hello: %+v, %v", info, err)
	}
	if err := p.ReportDead(ctx, colo.Report{VM: "web", From: "n1"}); !errors.Is(err, colo.ErrNoVM) || errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("a VM it doesn't know: %v", err)
	}
	must(t, s.hosts["n2"].node.Create(ctx, spec(t)))
	if err := p.ReportDead(ctx, colo.Report{VM: "web", From: "n1"}); !errors.Is(err, colo.ErrNothingToGoOn) || errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("no copy there: %v", err)
	}
	rec, err := s.hosts["n2"].store.Get("web")
	must(t, err)
	if err := p.Confirm(ctx, arbiter.Record{VM: rec.ID, Generation: 1, Members: []string{"n1"}}); !errors.Is(err, colo.ErrGenerationOld) || errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("a copy that is no secondary: %v", err)
	}
	if vm, err := p.Inquire(ctx, "web"); err != nil || vm.State != colo.Stopped || vm.Running {
		t.Errorf("inquire: %+v, %v", vm, err)
	}
	var inv *colo.InvalidSpecError
	odd := spec(t)
	odd.Disks[0].Size++
	if _, err := p.Prepare(ctx, colo.PrepareRequest{From: "n1", Spec: odd}); !errors.As(err, &inv) || errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("an invalid spec: %v", err)
	}
	var differs *colo.PeerMismatchError
	if _, err := p.Prepare(ctx, colo.PrepareRequest{From: "n1", Spec: spec(t), QEMU: "9.9.9"}); !errors.As(err, &differs) || differs.There != "9.9.9" {
		t.Errorf("another QEMU: %v", err)
	}
}

func spec(t *testing.T) *colo.Spec {
	s, err := colo.ParseSpec([]byte(webYAML), "web.yaml")
	must(t, err)
	return s
}

// TestNoAnswerProvesNothing: whatever a peer answers that isn't its engine's word is an ErrPeerUnreachable. Otherwise the answer to a report of a dead copy
// would read as "no copy here could go on".
func TestNoAnswerProvesNothing(t *testing.T) {
	s := newSite(t)
	good := `{"error":{"code":"nothing_to_go_on","message":"x","exit":4,"engine":true}}`
	answers := map[string]http.HandlerFunc{
		"403 of the API": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 403, `{"error":{"code":"forbidden","message":"x","exit":4,"engine":false}}`)
		},
		"an unknown code": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 400, `{"error":{"code":"new","message":"x","exit":4,"engine":false}}`)
		},
		"no error in it": func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, `{}`) },
		"not JSON":       func(w http.ResponseWriter, _ *http.Request) { answer(w, 502, `<html>`) },
		"half an answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999")
			answer(w, 409, good)
		},
		"of the wrong type": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(409); _, _ = io.WriteString(w, good) },
		"closing": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 503, `{"error":{"code":"closed","message":"x","exit":1,"engine":true}}`)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"nothing":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	for name, h := range answers {
		p := s.fakePeer(t, h)
		for call, err := range everyCall(t.Context(), p) {
			if !errors.Is(err, colo.ErrPeerUnreachable) || errors.Is(err, colo.ErrNothingToGoOn) {
				t.Errorf("%s: %s: %v", name, call, err)
			}
		}
	}
	p := s.fakePeer(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, 409, good) })
	if err := p.ReportDead(t.Context(), colo.Report{}); !errors.Is(err, colo.ErrNothingToGoOn) || errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("the engine's word: %v", err)
	}
	silent := make(chan struct{})
	defer close(silent)
	p = s.fakePeer(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.ReportDead(ctx, colo.Report{}); !errors.Is(err, colo.ErrPeerUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
	p.SetAddresses(nil)
	if _, err := p.Hello(t.Context()); !errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("no address: %v", err)
	}
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// fakePeer is a server with n2's certificate that answers as h does.
func (s *site) fakePeer(t *testing.T, h http.HandlerFunc) *Peer {
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = s.credentials(pki.Node, "n2").Server()
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	p, err := NewPeer(ClientOptions{Node: "n2", Addresses: []string{srv.Listener.Addr().String()}, Credentials: s.credentials(pki.Node, "n1")})
	must(t, err)
	return p
}

// TestWhoAnswersLives: an arbiter that would power the peer off must know a peer that answers nonsense from one that doesn't answer.
func TestWhoAnswersLives(t *testing.T) {
	s := newSite(t)
	m := fence.Message{Kind: "compare", VM: "x", Session: 1, Seq: 1}
	if _, err := s.peer("n1", "n2").Exchange(t.Context(), m); !errors.Is(err, fence.ErrAnswered) || !strings.Contains(err.Error(), "asks no peer") {
		t.Errorf("without such an arbiter: %v", err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"refusal": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 403, `{"error":{"code":"forbidden","message":"x","exit":4,"engine":false}}`)
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, `<html>`) },
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, `<html>`) },
	} {
		if _, err := s.fakePeer(t, h).Exchange(t.Context(), m); !errors.Is(err, fence.ErrAnswered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.fakePeer(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }).Exchange(t.Context(), m); err == nil || errors.Is(err, fence.ErrAnswered) {
		t.Errorf("no answer: %v", err)
	}
	h := s.hosts["n2"]
	h.server.opts.Exchange = func(_ context.Context, from string, m fence.Message) (fence.Reply, error) {
		return fence.Reply{Refused: from + " " + m.VM}, nil
	}
	if r, err := s.peer("n1", "n2").Exchange(t.Context(), m); err != nil || r.Refused != "n1 x" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestAddresses: a peer is reached while one of its addresses works, however the others fail, and where it has moved to.
func TestAddresses(t *testing.T) {
	s := newSite(t)
	h := s.hosts["n2"]
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	refused := closed.Addr().String()
	_ = closed.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	must(t, err)
	defer mute.Close()
	wrong := httptest.NewUnstartedServer(nil)
	wrong.TLS = &tls.Config{}
	wrong.Config.ErrorLog = nil
	wrong.StartTLS()
	defer wrong.Close()
	p, err := NewPeer(ClientOptions{Node: "n2", Addresses: []string{refused, mute.Addr().String(), wrong.Listener.Addr().String(), h.addr}, Credentials: s.credentials(pki.Node, "n1")})
	must(t, err)
	begun := time.Now()
	if _, err := p.Hello(t.Context()); err != nil {
		t.Errorf("one of four works: %v", err)
	}
	if took := time.Since(begun); took > dialTimeout/2 {
		t.Errorf("took %s", took)
	}
	p.SetAddresses([]string{refused, wrong.Listener.Addr().String()})
	_, err = p.Hello(t.Context())
	if !errors.Is(err, colo.ErrPeerUnreachable) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "\n") {
		t.Errorf("none works: %v", err)
	}
	p.SetAddresses([]string{h.addr})
	if _, err := p.Hello(t.Context()); err != nil {
		t.Errorf("it has moved: %v", err)
	}
}

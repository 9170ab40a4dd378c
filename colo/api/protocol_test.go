package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

func TestVersionsApart(t *testing.T) {
	for _, c := range []struct {
		ours  speaks
		said  string
		wrong string // part of the error; empty is none
	}{
		{speaks{1, 1}, "", ""},
		{speaks{1, 1}, "1; oldest 1", ""},
		{speaks{1, 1}, "2; oldest 1", ""},
		{speaks{2, 1}, "", ""},
		{speaks{2, 2}, "3", "upgrade this node"},
		{speaks{1, 1}, "3; oldest 2", "upgrade this node"},
		{speaks{3, 2}, "", "upgrade the peer"},
		{speaks{3, 2}, "1; oldest 1", "upgrade the peer"},
		{speaks{1, 1}, "new", `"new"`},
		{speaks{1, 1}, "1; oldest 2", `"1; oldest 2"`},
	} {
		h := http.Header{}
		if c.said != "" {
			h.Set(protocolHeader, c.said)
		}
		err := c.ours.understands(h)
		if (err == nil) != (c.wrong == "") || err != nil && (!errors.Is(err, colo.ErrPeerProtocol) || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%v and %q: %v", c.ours, c.said, err)
		}
	}
}

// otherVersion is a transport that makes requests and answers those of another version: with a field more, and a number.
type otherVersion struct {
	rt             http.RoundTripper
	asks, answers  string // numbers; empty is none
	answered, sent int
}

func (o *otherVersion) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	number(r.Header, o.asks)
	if r.Body != nil {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if len(data) > 0 {
			data = more(data)
			o.sent++
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	}
	resp, err := o.rt.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if len(data) > 0 {
		data = more(data)
		o.answered++
	}
	number(resp.Header, o.answers)
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	resp.Header.Del("Content-Length")
	return resp, err
}

func number(h http.Header, n string) {
	h.Del(protocolHeader)
	if n != "" {
		h.Set(protocolHeader, n)
	}
}

func more(data []byte) []byte {
	var v map[string]json.RawMessage
	if json.Unmarshal(data, &v) != nil {
		return data
	}
	v = maps.Clone(v)
	v["of_another_version"] = json.RawMessage(`{"x":1}`)
	out, _ := json.Marshal(v)
	return out
}

// TestNeighbouringVersions: an older and a newer node are understood, with what they say more; one that is too far apart is refused on both sides, by an
// error that says whom to upgrade and that proves nothing of the peer.
func TestNeighbouringVersions(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct{ asks, answers string }{{"", ""}, {"2; oldest 1", "2; oldest 1"}} {
		p := s.peer("n1", "n2")
		o := &otherVersion{rt: p.tr, asks: c.asks, answers: c.answers}
		p.http.Transport = o
		for call, err := range everyCall(t.Context(), p) {
			var field *Error
			if errors.Is(err, colo.ErrPeerProtocol) || errors.As(err, &field) && field.Body.Code == "bad_request" || err != nil && strings.Contains(err.Error(), "of_another_version") {
				t.Errorf("%+v: %s: %v", c, call, err)
			}
		}
		if info, err := p.Hello(t.Context()); err != nil || info.Name != "n2" {
			t.Errorf("%+v: hello: %+v, %v", c, info, err)
		}
		if err := p.ReportDead(t.Context(), colo.Report{VM: "web", From: "n1"}); !errors.Is(err, colo.ErrNoVM) {
			t.Errorf("%+v: a report was not understood: %v", c, err)
		}
		if o.sent == 0 || o.answered == 0 {
			t.Errorf("%+v", o)
		}
	}
	sick := func() bool {
		h, err := s.peer("n1", "n2").Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.peer("n1", "n2").Node(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sick := slices.ContainsFunc(h.Items, func(i HealthItem) bool { return i.Name == "version of n1" && !i.OK })
		if sick != (n.PeerApart != "") {
			t.Errorf("health says %v, the node %q", sick, n.PeerApart)
		}
		return sick
	}
	if sick() {
		t.Error("neighbouring versions are called too far apart")
	}
	defer func() {
		if _, err := s.peer("n1", "n2").Hello(t.Context()); err != nil || sick() {
			t.Errorf("the upgrade was not noticed: %v", err)
		}
	}()
	for _, c := range []struct{ asks, answers, whom string }{
		{"7; oldest 5", "1; oldest 1", "upgrade this node"}, // refused by n2, which speaks of itself
		{"1; oldest 1", "7; oldest 5", "upgrade this node"}, // refused by n1
	} {
		p := s.peer("n1", "n2")
		p.http.Transport = &otherVersion{rt: p.tr, asks: c.asks, answers: c.answers}
		for call, err := range everyCall(t.Context(), p) {
			if strings.HasPrefix(c.asks, "7") && !sick() {
				t.Error("n2's health doesn't say that n1 is too far apart")
			}
			if !errors.Is(err, colo.ErrPeerProtocol) || !errors.Is(err, colo.ErrPeerUnreachable) || !strings.Contains(err.Error(), c.whom) {
				t.Errorf("%+v: %s: %v", c, call, err)
			}
		}
	}
}

// TestSpecStaysStrict: half of a machine must not be made.
func TestSpecStaysStrict(t *testing.T) {
	body := `{"from":"n1","id":"x","later":1,"spec":{"name":"web","colour":"red"}}`
	var in struct {
		*colo.PrepareRequest
		Spec json.RawMessage `json:"spec"`
	}
	in.PrepareRequest = new(colo.PrepareRequest)
	r := httptest.NewRequest(http.MethodPost, "/v1/peer/prepare", strings.NewReader(body))
	if err := bodyPeer(r, &in); err != nil || in.From != "n1" {
		t.Errorf("%+v, %v", in, err)
	}
	var spec *colo.Spec
	if err := strict(in.Spec, &spec); err == nil || !strings.Contains(err.Error(), "colour: unknown field") {
		t.Error(err)
	}
	if err := tolerant([]byte(`{"vm":"a","vm":"b"}`), new(arbiter.Record)); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	if err := tolerant([]byte(`{"vm":7}`), new(arbiter.Record)); !errors.Is(err, ErrBadRequest) {
		t.Error(err)
	}
}

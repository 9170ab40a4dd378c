package api

import (
	_ "embed"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// NodeStatus is a node as it sees itself.
type NodeStatus struct {
	Info    colo.NodeInfo    `json:"info"`
	Version string           `json:"version"`
	Run     string           `json:"run"` // changes when the daemon is restarted
	Begun   time.Time        `json:"begun"`
	Now     time.Time        `json:"now"`     // by the node's clock
	Arbiter string           `json:"arbiter"` // what kind is configured; none if there is none
	Peer    *colo.PeerStatus `json:"peer,omitempty"`
	// Peers are all of them, if there are more than one; Peer is the first.
	Peers []colo.PeerStatus `json:"peers,omitempty"`
	// PeerApart is why this node and its peer don't understand each other's calls; empty while they do.
	PeerApart string   `json:"peer_apart,omitempty"`
	VMs       []string `json:"vms"`
	// Capacity is nil where the daemon is older than this field.
	Capacity *colo.Capacity `json:"capacity,omitempty"`
	You      Caller         `json:"you"` // who the server takes the caller for
}

// Health is whether the daemon is well. A VM that is not protected does not make it sick: its status says that.
type Health struct {
	OK    bool         `json:"ok"`
	Node  string       `json:"node"`
	Items []HealthItem `json:"items"`
}

// HealthItem is one thing that was looked at.
type HealthItem struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

//go:embed openapi.yaml
var document []byte

// Document is the OpenAPI document in JSON.
var Document = sync.OnceValues(func() ([]byte, error) { return yaml.YAMLToJSON(document) })

func (s *Server) getDocument(w http.ResponseWriter, _ *request) error {
	doc, err := Document()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(doc)
	return nil
}

func (s *Server) getNode(w http.ResponseWriter, r *request) error {
	n := s.opts.Node
	out := NodeStatus{Info: n.Info(), Version: s.opts.Version, Run: s.run, Begun: s.begun, Now: time.Now(), Arbiter: s.opts.Arbiter, VMs: n.VMs(), You: r.caller}
	capacity := n.Capacity()
	out.Capacity = &capacity
	if out.Arbiter == "" {
		out.Arbiter = "none"
	}
	if p, ok := n.PeerStatus(); ok {
		out.Peer = &p
	}
	if all := n.PeerStatuses(); len(all) > 1 {
		out.Peers = all
	}
	for _, a := range s.apart.list() {
		if out.PeerApart != "" {
			out.PeerApart += "; "
		}
		out.PeerApart += a.err.Error()
	}
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) getHealth(w http.ResponseWriter, _ *request) error {
	n := s.opts.Node
	h := Health{OK: true, Node: n.Info().Name, Items: []HealthItem{}}
	add := func(name string, ok bool, format string, args ...any) {
		h.Items = append(h.Items, HealthItem{name, ok, fmt.Sprintf(format, args...)})
		h.OK = h.OK && ok
	}
	if _, err := n.History(state.Query{Node: true, Limit: 1}); err != nil {
		add("state", false, "%v", err)
	} else if err := n.Unwritten(); err != nil {
		add("state", false, "not written: %v", err)
	} else {
		add("state", true, "readable")
	}
	peers := n.PeerStatuses()
	if len(peers) == 0 {
		add("peer", false, "no peer is configured")
	}
	for _, p := range peers {
		if len(p.Links) == 0 {
			add("peer", false, "%s: no link", p.Info.Name)
			continue
		}
		add("peer", p.State == "alive", "%s is %s", p.Info.Name, p.State)
		for _, l := range p.Links {
			text := "up"
			switch {
			case l.Error != "":
				text = l.Error
			case !l.Up && l.WrongKey > 0:
				text = "down: the peer's heartbeats are made with another key"
			case !l.Up:
				text = "down"
			}
			if len(peers) > 1 {
				text += " to " + p.Info.Name
			}
			add("link "+l.Name, l.Up, "%s", text)
		}
		if l, far := p.TooFar(); far {
			add("distance to "+p.Info.Name, false, "a round trip over %s takes %v, more than max-link-rtt: no VM is protected over it", l.Name, l.RTTMin.Round(10*time.Microsecond))
		}
	}
	for _, a := range s.apart.list() {
		add("version of "+a.node, false, "%v", a.err)
	}
	if s.opts.Health != nil {
		for _, i := range s.opts.Health() {
			add(i.Name, i.OK, "%s", i.Text)
		}
	}
	status := http.StatusOK
	if !h.OK {
		status = http.StatusServiceUnavailable
	}
	reply(w, status, h)
	return nil
}

// History is a part of what a node remembers.
type History struct {
	Entries []state.Entry `json:"entries"` // oldest first
}

// historyLimit is how many entries are answered when the caller names no other number.
const historyLimit = 1000

func (s *Server) getHistory(w http.ResponseWriter, r *request) error {
	q := state.Query{VM: r.vm, Limit: historyLimit}
	var err error
	if v, ok := r.params["after"]; ok {
		if q.After, err = strconv.ParseUint(v, 10, 64); err != nil {
			return &fieldError{field: "after", msg: fmt.Sprintf("%q: expected the number of an entry", v)}
		}
	}
	if v, ok := r.params["limit"]; ok {
		if q.Limit, err = strconv.Atoi(v); err != nil || q.Limit < 1 || q.Limit > 100_000 {
			return &fieldError{field: "limit", msg: fmt.Sprintf("%q: expected a number from 1 to 100000", v)}
		}
	}
	if v, ok := r.params["since"]; ok {
		if q.Since, err = time.Parse(time.RFC3339, v); err != nil {
			return &fieldError{field: "since", msg: fmt.Sprintf("%q: expected a time like 2006-01-02T15:04:05Z", v)}
		}
	}
	entries, err := s.opts.Node.History(q)
	if err != nil {
		return err
	}
	if len(entries) == 0 && r.vm != "" {
		if err := s.exists(r.vm); err != nil {
			return err
		}
	}
	if entries == nil {
		entries = []state.Entry{}
	}
	reply(w, http.StatusOK, History{entries})
	return nil
}

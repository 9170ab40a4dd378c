package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Gap tells a reader of events that some are gone for good: the node's status tells what is.
type Gap struct {
	Missed uint64 `json:"missed,omitempty"` // how many; not known after a restart
	Run    string `json:"run"`              // of the daemon
	Was    string `json:"was,omitempty"`    // the run that the reader has seen last, if it was another one
}

// alivePeriod is how often a silent stream shows that it lives.
const alivePeriod = 15 * time.Second

// streamWrite is how long a reader may not take anything before its stream is ended. It can come back and go on.
const streamWrite = 30 * time.Second

// eventID is an event's number with the run it belongs to.
func eventID(run string, seq uint64) string { return run + "-" + strconv.FormatUint(seq, 10) }

// from finds where a reader goes on: after the event it has seen last, or after the newest.
func (s *Server) from(r *request) (seq uint64, gap *Gap, err error) {
	last, ok := r.params["after"]
	if id := r.Header.Get("Last-Event-ID"); id != "" { // the later of both: it is what a stream that broke has really seen
		last, ok = id, true
	}
	if !ok {
		return s.feed.newest(), nil, nil
	}
	run, number, found := strings.Cut(last, "-")
	if !found { // a number alone is of this run; 0 is the beginning
		run, number = s.run, last
	}
	seq, err = strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, nil, &fieldError{field: "after", msg: fmt.Sprintf("%q: expected the id of an event, or 0 for all that are there", last)}
	}
	if run != s.run {
		return 0, &Gap{Run: s.run, Was: run}, nil
	}
	return seq, nil, nil
}

// getEvents streams events in the form of server-sent events: the id is the run and the number, the type is the event's kind, or gap.
func (s *Server) getEvents(w http.ResponseWriter, r *request) error {
	seq, gap, err := s.from(r)
	if err != nil {
		return err
	}
	follow := true
	if _, ok := r.params["follow"]; ok {
		if follow, err = r.flag("follow"); err != nil {
			return err
		}
	}
	vm, kinds := r.params["vm"], map[string]bool{}
	for _, k := range strings.Split(r.params["kind"], ",") {
		if k != "" {
			kinds[k] = true
		}
	}
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	send := func(text string) bool {
		_ = c.SetWriteDeadline(time.Now().Add(streamWrite))
		_, err := w.Write([]byte(text))
		return err == nil && c.Flush() == nil
	}
	// The place from which the stream goes on, for a reader that loses it before the first event.
	if !send("retry: 1000\nid: " + eventID(s.run, seq) + "\n\n") {
		return nil
	}
	if gap != nil && !send(message(eventID(s.run, 0), "gap", gap)) {
		return nil
	}
	alive := time.NewTicker(alivePeriod)
	defer alive.Stop()
	for {
		events, missed, changed, open := s.feed.after(seq)
		var out strings.Builder
		if missed > 0 {
			out.WriteString(message(eventID(s.run, seq+missed), "gap", Gap{Missed: missed, Run: s.run}))
			seq += missed
		}
		for _, e := range events {
			seq = e.Seq
			if (vm == "" || e.VM == vm) && (len(kinds) == 0 || kinds[e.Kind]) {
				out.WriteString(message(eventID(s.run, e.Seq), e.Kind, e))
			}
		}
		if out.Len() > 0 && !send(out.String()) {
			return nil
		}
		if !open || !follow {
			return nil
		}
		select {
		case <-changed:
		case <-alive.C:
			if !send(": alive\n\n") {
				return nil
			}
		case <-r.Context().Done():
			return nil
		}
	}
}

// message is one server-sent event. JSON has no line breaks of its own.
func message(id, kind string, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		data = []byte(`{}`)
	}
	return "id: " + id + "\nevent: " + kind + "\ndata: " + string(data) + "\n\n"
}

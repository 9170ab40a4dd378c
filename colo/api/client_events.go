package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// EventQuery selects events.
type EventQuery struct {
	VM    string   // only this VM's
	Kinds []string // only of these kinds
	// After is the id of the last event seen; "0" begins with the oldest that is there. Empty: from now on.
	After string
	// Once ends the stream after the events that are there; with After "0" these are all that the daemon still knows.
	Once bool
}

// StreamEvent is what a stream of events carries: an event, or a gap.
type StreamEvent struct {
	ID    string
	Event NumberedEvent
	Gap   *Gap // events are missing before what follows; Event is empty
}

// A stream that brings nothing for longer than this, not even a sign of life, is given up and opened anew.
const streamSilence = 3 * alivePeriod

// Reopening a stream is tried at these intervals.
const (
	reopenFirst = 200 * time.Millisecond
	reopenMost  = 5 * time.Second
)

// Events calls take for each event, in order, until ctx ends, take returns an error, or the server refuses the request. When the stream breaks it is opened anew
// after the last event seen; lost, if not nil, is called with the reason each time. With Once it returns nil when all events were taken, and the error when
// the stream breaks before.
func (c *Client) Events(ctx context.Context, q EventQuery, take func(StreamEvent) error, lost func(error)) error {
	last, pause := q.After, reopenFirst
	for {
		got := false
		err := c.stream(ctx, q, last, func(e StreamEvent) error {
			if e.ID != "" {
				last, got = e.ID, true
			}
			if e.Gap == nil && e.Event.Seq == 0 {
				return nil
			}
			if err := take(e); err != nil {
				return &takeError{err}
			}
			return nil
		})
		var taken *takeError
		var refused *Error
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &taken):
			return taken.error
		case errors.As(err, &refused) && !errors.Is(err, ErrBusy):
			return err
		case q.Once && errors.Is(err, errStreamEnded):
			return nil
		case q.Once:
			return err
		}
		if lost != nil {
			lost(err)
		}
		if got {
			pause = reopenFirst
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, reopenMost)
	}
}

type takeError struct{ error }

// errStreamEnded is how a stream ends that was not cut: what the server had to say was read.
var errStreamEnded = fmt.Errorf("the stream has ended: %w", io.EOF)

// stream reads one stream to its end, which always has a reason.
func (c *Client) stream(ctx context.Context, q EventQuery, after string, take func(StreamEvent) error) error {
	v := url.Values{}
	if q.VM != "" {
		v.Set("vm", q.VM)
	}
	if len(q.Kinds) > 0 {
		v.Set("kind", strings.Join(q.Kinds, ","))
	}
	if q.Once {
		v.Set("follow", "false")
	}
	h := http.Header{"Accept": {"text/event-stream"}}
	if after != "" {
		h.Set("Last-Event-ID", after)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alive := time.AfterFunc(streamSilence, func() { cancel(fmt.Errorf("nothing was heard for %s", streamSilence)) })
	defer alive.Stop()
	resp, err := c.open(ctx, &call{method: "GET", path: []string{"v1", "events"}, query: v, header: h})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = readEvents(resp.Body, func(m sse) error {
		alive.Reset(streamSilence)
		e := StreamEvent{ID: m.id}
		var err error
		switch {
		case len(m.data) == 0:
			return take(e) // a sign of life, or only an id
		case m.kind == "gap":
			e.Gap = &Gap{}
			err = json.Unmarshal(m.data, e.Gap)
		default:
			err = json.Unmarshal(m.data, &e.Event)
		}
		if err != nil {
			return fmt.Errorf("event %s: %w", m.id, err)
		}
		return take(e)
	})
	if ctx.Err() != nil && !errors.As(err, new(*takeError)) {
		return fmt.Errorf("%s: %w: %w", c.where, ErrUnreachable, context.Cause(ctx))
	}
	return err
}

// sse is one message of a stream; without data it is a sign of life.
type sse struct {
	id, kind string
	data     []byte
}

// maxEvent bounds one message.
const maxEvent = 1 << 20

// readEvents takes a stream of server-sent events apart. It ends with an error: io.EOF wrapped when the stream has ended.
func readEvents(r io.Reader, take func(sse) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	var m sse
	full := false
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 {
			if full {
				if err := take(m); err != nil {
					return err
				}
			}
			m, full = sse{}, false
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "":
			full = full || len(m.data) == 0 // a comment alone is a message without data
		case "id":
			m.id, full = string(value), true
		case "event":
			m.kind, full = string(value), true
		case "data":
			if len(m.data)+len(value) > maxEvent {
				return fmt.Errorf("event %s is over %d bytes", m.id, maxEvent)
			}
			if len(m.data) > 0 {
				m.data = append(m.data, '\n')
			}
			m.data, full = append(m.data, value...), true
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errStreamEnded
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

// route is one endpoint.
type route struct {
	method   string
	path     string // as http.ServeMux reads it
	least    pki.Role
	nodesToo bool     // peers may use it besides people
	query    []string // its parameters
	stream   bool     // it answers for as long as the caller likes
	change   bool     // it changes something: logged
	do       func(s *Server, w http.ResponseWriter, r *request) error
}

// task names what a route does as people know it: the command, as far as there is one.
func (rt *route) task() string {
	switch rt.String() {
	case "POST /v1/vms":
		return "vm create"
	case "DELETE /v1/vms/{vm}":
		return "vm delete"
	case "PUT /v1/vms/{vm}/spec":
		return "vm edit"
	}
	var words []string
	for _, w := range strings.Split(strings.TrimPrefix(rt.path, "/v1/"), "/") {
		if !strings.HasPrefix(w, "{") && w != "vms" {
			words = append(words, w)
		}
	}
	if rt.method == "GET" {
		words = append([]string{"reading"}, words...)
	}
	return strings.Join(words, " ")
}

func (rt *route) String() string { return rt.method + " " + rt.path }

// request is what a handler needs of one.
type request struct {
	*http.Request
	caller Caller
	vm     string // of the path; empty if it has none
	params map[string]string
	log    *slog.Logger
}

var routes = []route{
	{method: "GET", path: "/openapi.json", least: pki.Viewer, nodesToo: true, do: (*Server).getDocument},
	{method: "GET", path: "/v1/health", least: pki.Viewer, nodesToo: true, do: (*Server).getHealth},
	{method: "GET", path: "/v1/node", least: pki.Viewer, nodesToo: true, do: (*Server).getNode},
	{method: "GET", path: "/v1/history", least: pki.Viewer, query: historyQuery, do: (*Server).getHistory},
	{method: "GET", path: "/v1/events", least: pki.Viewer, query: []string{"vm", "kind", "after", "follow"}, stream: true, do: (*Server).getEvents},

	{method: "GET", path: "/v1/vms", least: pki.Viewer, do: (*Server).listVMs},
	{method: "POST", path: "/v1/vms", least: pki.Admin, query: []string{"reason", "dry_run"}, change: true, do: (*Server).createVM},
	{method: "GET", path: "/v1/vms/{vm}", least: pki.Viewer, do: (*Server).getVM},
	{method: "DELETE", path: "/v1/vms/{vm}", least: pki.Admin, query: []string{"images", "reason", "dry_run"}, change: true, do: (*Server).deleteVM},
	{method: "GET", path: "/v1/vms/{vm}/spec", least: pki.Viewer, do: (*Server).getSpec},
	{method: "PUT", path: "/v1/vms/{vm}/spec", least: pki.Admin, query: []string{"reason", "dry_run"}, change: true, do: (*Server).putSpec},
	{method: "GET", path: "/v1/vms/{vm}/status", least: pki.Viewer, nodesToo: true, query: []string{"both"}, do: (*Server).getStatus},
	{method: "GET", path: "/v1/vms/{vm}/history", least: pki.Viewer, query: historyQuery, do: (*Server).getHistory},

	{method: "POST", path: "/v1/vms/{vm}/start", least: pki.Operator, query: actionQuery, change: true, do: (*Server).start},
	{method: "POST", path: "/v1/vms/{vm}/stop", least: pki.Operator, query: actionQuery, change: true, do: (*Server).stopVM},
	{method: "POST", path: "/v1/vms/{vm}/protect", least: pki.Operator, query: actionQuery, change: true, do: (*Server).protect},
	{method: "POST", path: "/v1/vms/{vm}/unprotect", least: pki.Operator, query: actionQuery, change: true, do: (*Server).unprotect},
	{method: "POST", path: "/v1/vms/{vm}/checkpoint", least: pki.Operator, query: actionQuery, change: true, do: (*Server).checkpoint},
	{method: "POST", path: "/v1/vms/{vm}/switchover", least: pki.Operator, query: actionQuery, change: true, do: (*Server).switchover},
	{method: "POST", path: "/v1/vms/{vm}/resync", least: pki.Operator, query: actionQuery, change: true, do: (*Server).resync},
	{method: "PATCH", path: "/v1/vms/{vm}/resync", least: pki.Operator, query: actionQuery, change: true, do: (*Server).tuneResync},
	{method: "POST", path: "/v1/vms/{vm}/verify", least: pki.Operator, query: actionQuery, change: true, do: (*Server).verify},
	{method: "POST", path: "/v1/vms/{vm}/disks/{disk}/offline", least: pki.Operator, query: actionQuery, change: true, do: (*Server).diskOffline},
	{method: "POST", path: "/v1/vms/{vm}/disks/{disk}/online", least: pki.Operator, query: actionQuery, change: true, do: (*Server).diskOnline},
	{method: "GET", path: "/v1/vms/{vm}/disks", least: pki.Viewer, do: (*Server).listDisks},
	{method: "POST", path: "/v1/vms/{vm}/disks/{disk}/resize", least: pki.Admin, query: actionQuery, change: true, do: (*Server).diskResize},
	{method: "POST", path: "/v1/vms/{vm}/backup", least: pki.Admin, query: actionQuery, change: true, do: (*Server).backup},
	{method: "POST", path: "/v1/vms/{vm}/export", least: pki.Admin, query: actionQuery, change: true, do: (*Server).export},
	{method: "POST", path: "/v1/images", least: pki.Admin, query: actionQuery, change: true, do: (*Server).makeImage},
	{method: "POST", path: "/v1/restore", least: pki.Admin, query: actionQuery, change: true, do: (*Server).restore},
	{method: "POST", path: "/v1/vms/{vm}/restore-record", least: pki.Admin, query: actionQuery, change: true, do: (*Server).restoreRecord},
	{method: "POST", path: "/v1/vms/{vm}/failover", least: pki.Admin, query: actionQuery, change: true, do: (*Server).failover},

	{method: "GET", path: "/v1/operations", least: pki.Viewer, query: []string{"vm"}, do: (*Server).listOperations},
	{method: "GET", path: "/v1/operations/{id}", least: pki.Viewer, query: []string{"wait"}, do: (*Server).getOperation},
	{method: "POST", path: "/v1/operations/{id}/cancel", least: pki.Operator, change: true, do: (*Server).cancelOperation},

	{method: "GET", path: "/v1/peer/hello", least: pki.Node, do: (*Server).peerHello},
	{method: "GET", path: "/v1/peer/vms/{vm}", least: pki.Node, do: (*Server).peerInquire},
	{method: "GET", path: "/v1/peer/records/{id}", least: pki.Node, do: (*Server).peerHeld},
	{method: "POST", path: "/v1/peer/prepare", least: pki.Node, change: true, do: (*Server).peerPrepare},
	{method: "POST", path: "/v1/peer/drop", least: pki.Node, change: true, do: (*Server).peerDrop},
	{method: "POST", path: "/v1/peer/confirm", least: pki.Node, change: true, do: (*Server).peerConfirm},
	{method: "POST", path: "/v1/peer/take-over", least: pki.Node, change: true, do: (*Server).peerTakeOver},
	{method: "POST", path: "/v1/peer/report-dead", least: pki.Node, change: true, do: (*Server).peerReportDead},
	{method: "POST", path: "/v1/peer/report-channel-lost", least: pki.Node, change: true, do: (*Server).peerReportChannelLost},
	{method: "POST", path: "/v1/peer/checkpoint", least: pki.Node, do: (*Server).peerCheckpoint},
	{method: "POST", path: "/v1/peer/sums", least: pki.Node, do: (*Server).peerSums},
	{method: "POST", path: "/v1/peer/arbiter", least: pki.Node, do: (*Server).peerArbiter},
}

var (
	historyQuery = []string{"after", "since", "limit"}
	actionQuery  = []string{"dry_run"}
)

// ServeHTTP answers what the routes don't with our form of errors.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := s.mux.Handler(r); pattern == "" {
		err := apiErrorf(ErrNoRoute, "%s %s", r.Method, r.URL.Path)
		var can []string
		for _, rt := range routes {
			if probe := r.Clone(r.Context()); rt.method != r.Method {
				probe.Method = rt.method
				if _, p := s.mux.Handler(probe); p == rt.String() {
					can = append(can, rt.method)
				}
			}
		}
		if len(can) > 0 {
			w.Header().Set("Allow", strings.Join(can, ", "))
			err = apiErrorf(ErrNoRoute, "%s %s: it can be used with %s", r.Method, r.URL.Path, strings.Join(can, ", "))
			s.fail(w, err, "", http.StatusMethodNotAllowed)
			return
		}
		s.fail(w, err, "", 0)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// handler puts what all routes have in common around one.
func (s *Server) handler(rt *route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		begun := time.Now()
		r := &request{Request: hr, vm: hr.PathValue("vm"), log: s.log}
		err := s.serveRoute(rt, w, r)
		if err != nil {
			s.fail(w, err, r.vm, 0)
		}
		if rt.change && rt.least != pki.Node {
			s.refuse(r, rt.task(), err)
		}
		s.note(rt, r, err, time.Since(begun))
	})
}

func (s *Server) serveRoute(rt *route, w http.ResponseWriter, r *request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("bug: a request's handler panicked", "route", rt.String(), "panic", p, "stack", string(debug.Stack()))
			err = apiErrorf(ErrInternal, "%s: see the log of %s", rt, s.opts.Node.Info().Name)
		}
	}()
	if r.caller, err = s.caller(r.Request); err != nil {
		return err
	}
	r.log = s.log.With("caller", r.caller.Name, "role", r.caller.Role)
	if err := s.authorize(r.caller, rt); err != nil {
		return err
	}
	if rt.least == pki.Node {
		w.Header().Set(protocolHeader, s.speaks.String())
		err := s.speaks.understands(r.Header)
		s.apart.note(r.caller.Name, err)
		if err != nil {
			return err
		}
	}
	// What nodes say to each other must get through whatever people do.
	if queue := s.queue(rt); queue != nil {
		select {
		case queue <- struct{}{}:
			defer func() { <-queue }()
		default:
			return apiErrorf(ErrBusy, "%d at a time", cap(queue))
		}
	}
	q, err := query(r.Request, rt.query)
	if err != nil {
		return err
	}
	r.params = map[string]string{}
	for name := range q {
		r.params[name] = q.Get(name)
	}
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyTimeout)) // a body that doesn't come; not all transports of tests have deadlines
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	ctx, cancel := context.WithTimeoutCause(r.Context(), callTimeout, errCallTimeout)
	if rt.stream || rt.least == pki.Node || slices.Contains(rt.query, "wait") { // these have limits of their own, or the caller's
		cancel()
		ctx, cancel = context.WithCancel(r.Context())
	}
	defer cancel()
	if rt.stream || slices.Contains(rt.query, "wait") {
		defer context.AfterFunc(s.ctx, cancel)()
	}
	r.Request = r.WithContext(ctx)
	err = rt.do(s, w, r)
	if err != nil && ctx.Err() != nil {
		switch {
		case errors.Is(context.Cause(ctx), errCallTimeout):
			return apiErrorf(ErrTimeout, "%s took more than %s and may still be going on: %v", rt, callTimeout, err)
		case errors.Is(err, ctx.Err()): // nobody reads it
			return apiErrorf(ErrTimeout, "the caller has gone: %v", err)
		}
	}
	return err
}

var errCallTimeout = errors.New("request timeout")

func (s *Server) queue(rt *route) chan struct{} {
	switch {
	case rt.least == pki.Node:
		return nil
	case rt.stream:
		return s.streams
	}
	return s.busy
}

// note logs a request: each one that changes something, and each that went wrong.
func (s *Server) note(rt *route, r *request, err error, took time.Duration) {
	level := slog.LevelDebug
	if rt.change {
		level = slog.LevelInfo
	}
	attrs := []any{"route", rt.String(), "via", r.caller.Via, "took", took}
	if r.vm != "" {
		attrs = append(attrs, "vm", r.vm)
	}
	if r.caller.PID != 0 {
		attrs = append(attrs, "pid", r.caller.PID)
	}
	if err != nil {
		attrs = append(attrs, "err", err)
		if errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnauthenticated) {
			attrs = append(attrs, "from", r.RemoteAddr)
			level = slog.LevelWarn
		}
	}
	r.log.Log(r.Context(), level, "request", attrs...)
}

// fail answers with an error. status 0 is that of the error's kind.
func (s *Server) fail(w http.ResponseWriter, err error, vm string, status int) {
	body, own := describe(err, s.opts.Node.Info().Name, vm)
	if status == 0 {
		status = own
	}
	reply(w, status, map[string]any{"error": body})
}

// reply answers with JSON. What can't be sent any more has no reader.
func reply(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer can't be written as JSON","exit":1,"engine":false}}`)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n'))
}

func (r *request) flag(name string) (bool, error) {
	switch v, ok := r.params[name]; {
	case !ok:
		return false, nil
	case v == "true":
		return true, nil
	case v == "false":
		return false, nil
	default:
		return false, &fieldError{field: name, msg: fmt.Sprintf("%q: expected true or false", v)}
	}
}

// exists fails for a VM that the node doesn't know.
func (s *Server) exists(vm string) error {
	if !slices.Contains(s.opts.Node.VMs(), vm) {
		return fmt.Errorf("%s: %w (%s)", vm, colo.ErrNoVM, s.opts.Node.Info().Name)
	}
	return nil
}

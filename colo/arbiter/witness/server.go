package witness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
)

const (
	headerHost    = "Coloctl-Host"
	headerCall    = "Coloctl-Call"    // id and number of the attempt
	headerWitness = "Coloctl-Witness" // instance; marks an answer as a witness's
	headerRun     = "Coloctl-Run"     // another one after each start of the witness
	maxBody       = 64 << 10
)

// ServerOptions of NewServer.
type ServerOptions struct {
	Store   *Store
	Version string       // of the program, shown by the health request
	Host    string       // Default: HostID. The lab, whose hosts share one kernel, gives others.
	Log     *slog.Logger // Default: slog.Default
}

// Server answers nodes. It is an http.Handler for use behind mTLS, see [Server.Serve].
type Server struct {
	store   *Store
	version string
	host    string
	log     *slog.Logger
	mux     *http.ServeMux
	started time.Time
}

// NewServer returns a server on an open store, which stays the caller's to close after the server has ended.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Store == nil {
		return nil, errors.New("witness server without a store")
	}
	if o.Host == "" {
		var err error
		if o.Host, err = HostID(); err != nil {
			return nil, err
		}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{store: o.Store, version: o.Version, host: o.Host, log: o.Log, mux: http.NewServeMux(), started: time.Now().UTC().Round(time.Second)}
	s.mux.HandleFunc("GET /v1/health", s.as(s.health))
	s.mux.HandleFunc("GET /v1/records", s.as(s.list))
	s.mux.HandleFunc("GET /v1/mine", s.as(s.mine))
	s.mux.HandleFunc("POST /v1/records/{vm}", s.as(s.call))
	return s, nil
}

// ServeHTTP implements http.Handler. Requests need a verified client certificate.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Serve answers on a listener until ctx ends, and returns when all requests have. It closes the listener.
func (s *Server) Serve(ctx context.Context, ln net.Listener, creds *pki.Credentials) error {
	srv := &http.Server{
		Handler:           s,
		TLSConfig:         creds.Server(pki.Node, pki.Viewer, pki.Operator, pki.Admin),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(ln, "", "") }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		_ = srv.Close()
	}
	<-ended
	return nil
}

// Health is what a witness says about itself.
type Health struct {
	Version  string    `json:"version"`
	Instance string    `json:"instance"` // changes only when the file is made anew: then all that was decided is lost
	Started  time.Time `json:"started"`
	Records  int       `json:"records"`
}

type handler func(w http.ResponseWriter, r *http.Request, who pki.Identity) (any, error)

// as finds out who asks, and turns what the handler returns into an answer.
func (s *Server) as(do handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := func() (any, error) {
			who, err := pki.Caller(r)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrForbidden, err)
			}
			if who.Role == pki.Node {
				switch host := r.Header.Get(headerHost); host {
				case "":
					return nil, fmt.Errorf("%w: %s doesn't say on which host it runs", ErrForbidden, who)
				case s.host:
					return nil, fmt.Errorf("%w: %s", ErrSameHost, who.Name)
				}
			} else if !who.Role.Person() {
				return nil, fmt.Errorf("%w: %s", ErrForbidden, who)
			}
			return do(w, r, who)
		}()
		w.Header().Set(headerWitness, s.store.Instance())
		w.Header().Set(headerRun, s.store.run)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			code, status := "unavailable", http.StatusServiceUnavailable
			for _, c := range codes {
				if errors.Is(err, c.err) {
					code, status = c.code, c.status
					break
				}
			}
			if status == http.StatusServiceUnavailable && r.Context().Err() == nil {
				s.log.Error("witness can't answer", "err", err)
			}
			w.WriteHeader(status)
			out = failure{Code: code, Message: err.Error()}
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (s *Server) health(http.ResponseWriter, *http.Request, pki.Identity) (any, error) {
	recs, err := s.store.Records()
	if err != nil {
		return nil, err
	}
	return Health{Version: s.version, Instance: s.store.Instance(), Started: s.started, Records: len(recs)}, nil
}

func (s *Server) list(http.ResponseWriter, *http.Request, pki.Identity) (any, error) {
	recs, err := s.store.Records()
	if recs == nil {
		recs = []arbiter.Record{}
	}
	return recs, err
}

// membership is where a node is a member.
type membership struct {
	Instance string   `json:"instance"`
	VMs      []string `json:"vms"`
}

func (s *Server) mine(_ http.ResponseWriter, _ *http.Request, who pki.Identity) (any, error) {
	vms, err := s.store.mine(who.Name)
	return membership{Instance: s.store.Instance(), VMs: vms}, err
}

func (s *Server) call(w http.ResponseWriter, r *http.Request, who pki.Identity) (any, error) {
	var req request
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields() // what an older witness doesn't know could change what is meant
	if err := d.Decode(&req); err != nil {
		return nil, fmt.Errorf("%w: %w", arbiter.ErrInvalid, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one request", arbiter.ErrInvalid)
	}
	allowed := who.Role == pki.Node && req.Op != opDrop
	switch {
	case who.Role.Person() && req.Op == opGet:
		allowed = true
	case req.Op == opDrop:
		allowed = who.Role.Allows(pki.Admin)
	}
	if !allowed {
		return nil, fmt.Errorf("%w: %s may not %s", ErrForbidden, who, req.Op)
	}
	id, n, _ := strings.Cut(r.Header.Get(headerCall), " ")
	attempt, _ := strconv.Atoi(n)
	ans, err := s.store.do(r.PathValue("vm"), req, who.Name, id, attempt, r.Context().Err)
	if err != nil {
		return nil, err
	}
	if req.Op != opGet {
		s.log.Info("witness answered", "vm", r.PathValue("vm"), "op", req.Op, "node", who.Name, "record", ans.Record, "tenure", ans.Tenure, "moved", ans.Moved)
	}
	return ans, nil
}

package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/coloctl/coloctl/colo"
)

// VerifyRequest is the body of a verify.
type VerifyRequest struct {
	Request
	colo.VerifyOptions
}

// verify is an operation: it reads both halves.
func (s *Server) verify(w http.ResponseWriter, r *request) error {
	var in VerifyRequest
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	if in.Limit < 0 {
		return &fieldError{field: "limit", msg: fmt.Sprintf("%d: expected bytes a second, or 0 for no limit", in.Limit)}
	}
	return s.action(w, r, "verify", in.Reason, checked(func(context.Context) error { return s.opts.Node.CheckVerify(r.vm) }), func(ctx context.Context) error {
		_, err := s.opts.Node.Verify(ctx, r.vm, in.VerifyOptions)
		return err
	})
}

func (s *Server) diskOffline(w http.ResponseWriter, r *request) error {
	return s.setDisk(w, r, "offline", false)
}
func (s *Server) diskOnline(w http.ResponseWriter, r *request) error {
	return s.setDisk(w, r, "online", true)
}

// dryRun answers a request that is one, of what has no steps to be told, by what check says. It is not done when the real thing is wanted.
func dryRun(w http.ResponseWriter, r *request, check func() error) (done bool, err error) {
	dry, err := r.flag("dry_run")
	if err == nil && dry {
		if err = check(); err == nil {
			w.WriteHeader(http.StatusNoContent)
		}
	}
	return dry || err != nil, err
}

func (s *Server) setDisk(w http.ResponseWriter, r *request, verb string, online bool) error {
	var in Request
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	disk := r.PathValue("disk")
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckDisk(r.vm, disk, online) }); done {
		return err
	}
	if err := s.opts.Node.SetDisk(r.Context(), r.vm, disk, online, in.Reason); err != nil {
		return err
	}
	s.remark(r, "disk "+disk+" "+verb, in.Reason)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

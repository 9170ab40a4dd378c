package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
)

// The calls of colo.Peer. The certificate says who calls; a message that names somebody else as its sender is refused.

func (s *Server) peerHello(w http.ResponseWriter, r *request) error {
	info, err := s.opts.Node.AsPeer().Hello(r.Context())
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, info)
	return nil
}

func (s *Server) peerInquire(w http.ResponseWriter, r *request) error {
	vm, err := s.opts.Node.AsPeer().Inquire(r.Context(), r.vm)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, vm)
	return nil
}

func (s *Server) peerCheckpoint(w http.ResponseWriter, r *request) error {
	var in colo.CheckpointRequest
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if err := about(r, in.VM, in.From); err != nil {
		return err
	}
	if err := s.opts.Node.AsPeer().Checkpoint(r.Context(), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) peerHeld(w http.ResponseWriter, r *request) error {
	rec, err := s.opts.Node.AsPeer().Held(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, rec)
	return nil
}

func (s *Server) peerPrepare(w http.ResponseWriter, r *request) error {
	var in colo.PrepareRequest
	var body struct {
		*colo.PrepareRequest
		Spec json.RawMessage `json:"spec"` // hides the other one
	}
	body.PrepareRequest = &in
	if err := bodyPeer(r.Request, &body); err != nil {
		return err
	}
	if len(body.Spec) > 0 { // a part of it that isn't known here would make another machine
		if err := strict(body.Spec, &in.Spec); err != nil {
			var field *fieldError
			if errors.As(err, &field) {
				field.field = strings.TrimSuffix("spec."+field.field, ".")
			}
			return err
		}
	}
	if in.Spec == nil {
		return &fieldError{field: "spec", msg: "missing"}
	}
	if err := sentBy(r, in.From); err != nil {
		return err
	}
	r.vm = in.Spec.Name
	out, err := s.opts.Node.AsPeer().Prepare(r.Context(), in)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, out)
	return nil
}

func sentBy(r *request, from string) error {
	if from != r.caller.Name {
		return apiErrorf(ErrForbidden, "the message is from %q, the certificate of %q", from, r.caller.Name)
	}
	return nil
}

// about notes which VM a message is about.
func about(r *request, vm, from string) error {
	if vm == "" {
		return &fieldError{field: "vm", msg: "missing"}
	}
	if err := sentBy(r, from); err != nil {
		return err
	}
	r.vm = vm
	return nil
}

func (s *Server) peerDrop(w http.ResponseWriter, r *request) error {
	var in colo.DropRequest
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if in.VM == "" {
		return &fieldError{field: "vm", msg: "missing"}
	}
	if err := s.opts.Node.AsPeer().Drop(r.Context(), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) peerConfirm(w http.ResponseWriter, r *request) error {
	return s.peerRecord(w, r, s.opts.Node.AsPeer().Confirm)
}

func (s *Server) peerTakeOver(w http.ResponseWriter, r *request) error {
	return s.peerRecord(w, r, s.opts.Node.AsPeer().TakeOver)
}

func (s *Server) peerRecord(w http.ResponseWriter, r *request, do func(context.Context, arbiter.Record) error) error {
	var in arbiter.Record
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if in.VM == "" {
		return &fieldError{field: "vm", msg: "missing"}
	}
	if err := do(r.Context(), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) peerReportDead(w http.ResponseWriter, r *request) error {
	return s.peerReport(w, r, s.opts.Node.AsPeer().ReportDead)
}

func (s *Server) peerReportChannelLost(w http.ResponseWriter, r *request) error {
	return s.peerReport(w, r, s.opts.Node.AsPeer().ReportChannelLost)
}

func (s *Server) peerReport(w http.ResponseWriter, r *request, do func(context.Context, colo.Report) error) error {
	var in colo.Report
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if err := about(r, in.VM, in.From); err != nil {
		return err
	}
	if err := do(r.Context(), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) peerSums(w http.ResponseWriter, r *request) error {
	var in colo.SumsRequest
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if in.VM == "" {
		return &fieldError{field: "vm", msg: "missing"}
	}
	if in.Length < 0 || in.Length > maxSums {
		return &fieldError{field: "length", msg: fmt.Sprintf("%d: expected up to %d bytes", in.Length, maxSums)}
	}
	if err := sentBy(r, in.From); err != nil {
		return err
	}
	r.vm = in.VM
	out, err := s.opts.Node.AsPeer().Sums(r.Context(), in)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, out)
	return nil
}

// maxSums is the largest part of a disk that is hashed for one request.
const maxSums = 64 << 20

func (s *Server) peerArbiter(w http.ResponseWriter, r *request) error {
	var in fence.Message
	if err := bodyPeer(r.Request, &in); err != nil {
		return err
	}
	if s.opts.Exchange == nil {
		return apiErrorf(ErrNoRoute, "the arbiter of %s asks no peer: configure the same one on both nodes", s.opts.Node.Info().Name)
	}
	out, err := s.opts.Exchange(r.Context(), r.caller.Name, in)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, out)
	return nil
}

package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

// VM is one VM with its spec.
type VM struct {
	Spec   *colo.Spec  `json:"spec"`
	Tag    string      `json:"tag"` // of the spec, for If-Match
	Status colo.Status `json:"status"`
}

// VMList is all VMs of a node.
type VMList struct {
	VMs []colo.Status `json:"vms"`
}

// BothStatus is a VM as both nodes see it.
type BothStatus struct {
	colo.Status
	Other      *colo.Status `json:"other,omitempty"`       // the peer's answer, if that was asked for
	OtherError string       `json:"other_error,omitempty"` // why there is none
}

const mediaYAML = "application/yaml"

func (s *Server) listVMs(w http.ResponseWriter, r *request) error {
	names := s.opts.Node.VMs()
	list := make([]colo.Status, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names { // each may ask the arbiter
		wg.Go(func() { list[i], errs[i] = s.opts.Node.Status(r.Context(), name) })
	}
	wg.Wait()
	out := VMList{VMs: []colo.Status{}}
	for i := range list {
		switch {
		case errs[i] == nil:
			out.VMs = append(out.VMs, list[i])
		case !errors.Is(errs[i], colo.ErrNoVM): // deleted in this moment
			return errs[i]
		}
	}
	reply(w, http.StatusOK, out)
	return nil
}

// readSpec reads a spec in JSON or YAML. It is valid. place is for later errors about its fields: it says where in the text they are.
func readSpec(r *request) (spec *colo.Spec, place func(error) error, err error) {
	place = func(err error) error { return err }
	data, err := readBody(r.Request)
	if err != nil {
		return nil, nil, err
	}
	switch t := media(r.Request); t {
	case mediaYAML, "application/x-yaml", "text/yaml":
		file := r.Header.Get("Colo-File")
		if file == "" {
			file = "spec"
		}
		spec, err = colo.ParseSpec(data, file)
		return spec, func(err error) error { colo.LocateSpec(err, data, file); return err }, err
	case "application/json":
		s := &colo.Spec{}
		if err := strict(data, s); err != nil {
			return nil, nil, err
		}
		return s, place, s.Validate()
	default:
		return nil, nil, apiErrorf(ErrBadRequest, "Content-Type %q: expected application/json or %s", t, mediaYAML)
	}
}

func (s *Server) createVM(w http.ResponseWriter, r *request) error {
	spec, place, err := readSpec(r)
	if err != nil {
		return err
	}
	r.vm = spec.Name
	if done, err := dryRun(w, r, func() error { return place(s.opts.Node.CheckCreate(r.Context(), spec)) }); done {
		return err
	}
	if err := s.opts.Node.Create(r.Context(), spec); err != nil {
		return place(err)
	}
	s.remark(r, "create", r.params["reason"])
	w.Header().Set("Location", "/v1/vms/"+spec.Name)
	return s.replyVM(w, r.Context(), spec.Name, http.StatusCreated)
}

func (s *Server) getVM(w http.ResponseWriter, r *request) error {
	return s.replyVM(w, r.Context(), r.vm, http.StatusOK)
}

func (s *Server) replyVM(w http.ResponseWriter, ctx context.Context, vm string, code int) error { //nolint:revive // the writer comes first, as in net/http
	spec, tag, err := s.opts.Node.Spec(vm)
	if err != nil {
		return err
	}
	status, err := s.opts.Node.Status(ctx, vm)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+tag+`"`)
	reply(w, code, VM{Spec: spec, Tag: tag, Status: status})
	return nil
}

func (s *Server) deleteVM(w http.ResponseWriter, r *request) error {
	images, err := r.flag("images")
	if err != nil {
		return err
	}
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckDelete(r.Context(), r.vm) }); done {
		return err
	}
	if err := s.opts.Node.Delete(r.Context(), r.vm, colo.DeleteOptions{Images: images}); err != nil {
		return err
	}
	s.remark(r, "delete", r.params["reason"])
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) getSpec(w http.ResponseWriter, r *request) error {
	spec, tag, err := s.opts.Node.Spec(r.vm)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+tag+`"`)
	if strings.Contains(r.Header.Get("Accept"), "yaml") {
		text, err := colo.MarshalSpec(spec)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", mediaYAML)
		_, _ = w.Write(text)
		return nil
	}
	reply(w, http.StatusOK, spec)
	return nil
}

func (s *Server) putSpec(w http.ResponseWriter, r *request) error {
	if err := s.exists(r.vm); err != nil {
		return err
	}
	spec, place, err := readSpec(r)
	if err != nil {
		return err
	}
	tag := strings.Trim(r.Header.Get("If-Match"), `"`)
	if tag == "*" {
		tag = ""
	}
	if done, err := dryRun(w, r, func() error { return place(s.opts.Node.CheckEdit(r.Context(), r.vm, spec, tag)) }); done {
		return err
	}
	if err := s.opts.Node.Edit(r.Context(), r.vm, spec, tag); err != nil {
		return place(err)
	}
	s.remark(r, "edit", r.params["reason"])
	return s.replyVM(w, r.Context(), r.vm, http.StatusOK)
}

// peerStatusTimeout is how long a status waits for the peer's half.
const peerStatusTimeout = 2 * time.Second

func (s *Server) getStatus(w http.ResponseWriter, r *request) error {
	both, err := r.flag("both")
	if err != nil {
		return err
	}
	var out BothStatus
	var wg sync.WaitGroup
	if both && r.caller.Role != pki.Node { // a node asks for this one's half only
		if s.opts.PeerStatus == nil {
			out.OtherError = colo.ErrNoPeer.Error()
		} else {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(r.Context(), peerStatusTimeout)
				defer cancel()
				other, err := s.opts.PeerStatus(ctx, r.vm)
				if err != nil {
					out.OtherError = err.Error()
				} else {
					out.Other = &other
				}
			})
		}
	}
	out.Status, err = s.opts.Node.Status(r.Context(), r.vm)
	wg.Wait()
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, out)
	return nil
}

// remark puts into the history who asked for what, and why.
func (s *Server) remark(r *request, what, reason string) {
	text := what + " asked for by " + r.caller.String()
	if reason != "" {
		text += ": " + reason
	}
	s.opts.Node.Remark(r.vm, "request", text)
}

package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// OperationList is the operations that a node remembers.
type OperationList struct {
	Operations []Operation `json:"operations"` // oldest first
}

func (s *Server) listOperations(w http.ResponseWriter, r *request) error {
	reply(w, http.StatusOK, OperationList{s.ops.list(r.params["vm"])})
	return nil
}

func (s *Server) getOperation(w http.ResponseWriter, r *request) error {
	var wait time.Duration
	if v, ok := r.params["wait"]; ok {
		sec, err := strconv.ParseFloat(v, 64)
		if err != nil || sec < 0 || sec > maxWait.Seconds() {
			return &fieldError{field: "wait", msg: fmt.Sprintf("%q: expected seconds, 0 to %v", v, maxWait.Seconds())}
		}
		wait = time.Duration(sec * float64(time.Second))
	}
	op, err := s.ops.get(r.Context(), r.PathValue("id"), wait)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, op)
	return nil
}

func (s *Server) cancelOperation(w http.ResponseWriter, r *request) error {
	if err := bodyJSON(r.Request, &Request{}, true); err != nil {
		return err
	}
	op, err := s.ops.stop(r.PathValue("id"))
	if err != nil {
		return err
	}
	reply(w, http.StatusAccepted, op)
	return nil
}

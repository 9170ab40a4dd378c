package service

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
)

var deviceName = regexp.MustCompile(`^[a-z]{2,4}[0-9]{0,3}$`)

func (s *HTTP) device(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	switch {
	case s.Devices == "":
		http.Error(w, "this guest has no devices", http.StatusServiceUnavailable)
		return
	case !deviceName.MatchString(name):
		http.Error(w, "name must be a block device's, such as sr0", http.StatusBadRequest)
		return
	}
	f, err := os.Open(filepath.Join(s.Devices, name))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%x\n", h.Sum(nil))
}

package service

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

func TestRawDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenRawDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h := (&HTTP{Raw: d}).Handler()
	post := func(query string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/raw?"+query, nil))
		return w.Code
	}
	if code := post("offset=4096&size=100000&seed=7"); code != http.StatusOK {
		t.Fatal(code)
	}
	want := make([]byte, 1<<20)
	if _, err := io.ReadFull(blob.NewReader(100000, 7), want[4096:104096]); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk has something else (%v)", err)
	}
	for query, code := range map[string]int{
		"offset=1048576&size=1":  http.StatusInternalServerError,
		"offset=0&size=1048577":  http.StatusInternalServerError,
		"offset=x&size=1":        http.StatusBadRequest,
		"offset=1048576&size=0":  http.StatusOK,
		"offset=-1&size=1":       http.StatusBadRequest,
		"offset=0&size=1&seed=s": http.StatusBadRequest,
	} {
		if got := post(query); got != code {
			t.Errorf("%s: %d, want %d", query, got, code)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, want) {
		t.Error("a refused write has changed the disk")
	}
	w := httptest.NewRecorder()
	(&HTTP{}).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/raw?size=1", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("without a disk: %d", w.Code)
	}
}

package importer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"remaster/internal/hint"
)

// journal remembers an upload that is under way, in a file that is there only as long as
// the upload is. It holds no secrets. It is a hint, not the truth: what it says is
// compared with the service's list of parts and with the blob before it is used, so that
// nothing waits until the file is on the medium.
type journal struct {
	path string // "": kept nowhere

	mu  sync.Mutex
	doc journalDoc
}

const journalVersion = 1

type journalDoc struct {
	Version  int                 `json:"version"`
	Bucket   string              `json:"bucket"`
	Key      string              `json:"key"`
	Identity string              `json:"identity"`
	Layout   string              `json:"layout"`
	UploadID string              `json:"uploadId"`
	PartSize int64               `json:"partSize"`
	Parts    map[int]journalPart `json:"parts"`
}

type journalPart struct {
	Size  int64  `json:"size"`
	ETag  string `json:"etag"`
	CRC64 uint64 `json:"crc64,string"`
	Copy  bool   `json:"copy,omitempty"` // CRC64 is not known
}

// openJournal reads the journal of an upload of what has this identity to dst. One that
// is missing, cut short or of another upload is an empty one.
func openJournal(dir, identity string, dst Object) (*journal, error) {
	j := &journal{}
	if dir == "" || identity == "" {
		return j, nil
	}
	sum := sha256.Sum256([]byte(identity + "\x00" + dst.Bucket + "\x00" + dst.Key))
	j.path = filepath.Join(dir, "upload-"+hex.EncodeToString(sum[:12])+".json")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for the journal: %w", err)
	}
	text, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	var d journalDoc
	if json.Unmarshal(text, &d) == nil && d.Version == journalVersion &&
		d.Identity == identity && d.Bucket == dst.Bucket && d.Key == dst.Key && d.Parts != nil {
		j.doc = d
	}
	return j, nil
}

// begin makes the journal that of a new upload, or of one that was found.
func (j *journal) begin(d journalDoc) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	d.Version, d.Parts = journalVersion, map[int]journalPart{}
	j.doc = d
	return j.save()
}

// part returns what is known of part num.
func (j *journal) part(num int) (journalPart, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p, ok := j.doc.Parts[num]
	return p, ok
}

// add remembers a part.
func (j *journal) add(num int, p journalPart) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doc.Parts[num] = p
	return j.save()
}

// save replaces the file as a whole.
func (j *journal) save() (err error) {
	if j.path == "" {
		return nil
	}
	defer func() {
		if err != nil {
			err = hint.With(fmt.Errorf("write the journal: %w", err), "name another folder for it, or none")
		}
	}()
	text, err := json.Marshal(j.doc)
	if err != nil {
		return err
	}
	if err := os.WriteFile(j.path+tempSuffix, text, 0o600); err != nil {
		return err
	}
	return os.Rename(j.path+tempSuffix, j.path)
}

const tempSuffix = ".tmp"

// remove ends the journal.
func (j *journal) remove() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doc = journalDoc{}
	if j.path == "" {
		return nil
	}
	for _, name := range []string{j.path + tempSuffix, j.path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the journal: %w", err)
		}
	}
	return nil
}

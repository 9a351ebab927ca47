// Rows of text as columns for people.
#ifndef FEDGE_TOOLS_FEDGE_TABLE_H_
#define FEDGE_TOOLS_FEDGE_TABLE_H_

#include <ostream>
#include <string>
#include <vector>

namespace fedge {

class Table {
 public:
  explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  // As many cells as the head has.
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Columns two spaces apart, as wide as their widest cell (in UTF-8 code points).
  void Print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_TABLE_H_
